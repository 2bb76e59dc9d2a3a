"""From token ids to log-probabilities: one forward pass, the output head in float32, in slices of positions."""

import collections
import concurrent.futures
import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from quantharm.common.errors import UserError
from quantharm.common.text import context_length, language_config
from quantharm.scoring.output_heads import Logits, logits_of, logits_of_module, plain_head

LARGEST_ROUNDING = 0.02  # relative, of two ways to compute the same
GIVEN_TOKENS = 128  # of a sequence without a prompt, which a method with a `kv_cache:` reads at once
SMALL_RESULTS = 32  # that wait to be collected on a GPU: slices of a few windows
MANY_CORES = 4  # of a job: passes that do without one of so many lose little
SLICE_ELEMENTS = 2**24  # logits held at once: 64 MB of float32


def check_ids(model, ids: list[int]) -> None:
    """Raises UserError for a sequence that is empty or longer than the model's context, or an id it does not know."""
    context = context_length(model.config)
    if not ids:
        raise UserError("a prompt has no tokens; every prompt needs at least one")
    if context and len(ids) > context:
        raise UserError(
            f"a sequence has {len(ids)} tokens but the model's context is {context}; shorten the prompts or "
            "`max_new_tokens:`"
        )
    if max(ids) >= model.get_input_embeddings().weight.shape[0]:
        raise UserError(f"token id {max(ids)} is not in the model's vocabulary; use the model's own tokenizer")


def last_hidden_states(model, ids: list[int], given: int = GIVEN_TOKENS) -> torch.Tensor:
    """Final hidden states of one sequence, batch 1, no padding; ids: T numbers, returns [T, width].

    given: how many of them are a prompt; a method with a `kv_cache:` reads these at once, the others through its cache.
    """
    if hasattr(model, "own_states"):  # of an engine, or of a quantized cache
        return model.own_states(ids, given)
    from quantharm.models.single_sequences import of_one_sequence  # takes a second, and engines do not need it

    device = model.get_input_embeddings().weight.device
    tokens = torch.tensor([ids]).to(device, non_blocking=True)  # [1, T]; does not wait for a busy GPU
    with torch.inference_mode(), of_one_sequence():  # launched in a tenth less time than without gradients
        return model.base_model(input_ids=tokens, use_cache=False).last_hidden_state[0]


def ask_ahead(model, sequences: list[tuple[list[int], int]]) -> None:
    """Announces sequences to an engine that answers several at once: (token ids, first position wanted)."""
    if hasattr(model, "ask_ahead"):
        model.ask_ahead(sequences)


def known_tokens(model, states: torch.Tensor) -> torch.Tensor | None:
    """Ids [n, m] of the tokens whose logits an engine shows (lower_bound.NO_TOKEN: of none); None: it shows all."""
    return model.known_tokens(states) if hasattr(model, "known_tokens") else None


def output_head(model) -> Logits:
    """The model's output head in float32: hidden states [n, width] → logits [n, vocabulary].

    Raises UserError where it differs from the model's own logits on a few tokens: an architecture that changes its
    logits in a way that scoring.output_heads does not know would be scored wrongly.
    """
    if hasattr(model, "own_logits"):  # of an engine other than transformers
        return model.own_logits
    plain = plain_head(model)
    logits = logits_of_module(model) if plain is None else logits_of(plain)
    states, expected = probe(model, model.get_output_embeddings())
    ours = logits(states)
    if is_near(ours, expected) and is_near(*largest_of(ours, expected)):
        return logits
    difference = max(relative_difference(ours, expected), relative_difference(*largest_of(ours, expected)))
    raise UserError(
        f"{type(model).__name__} changes its logits after the output head (they differ by {difference:.1%}); such "
        "models are not supported: choose another"
    )


def probe(model, head) -> tuple[torch.Tensor, torch.Tensor]:
    """(hidden states [T, width] as of last_hidden_states, the model's own logits [T, vocabulary] float32) of T tokens.

    Both come from one pass where the model calls its base model as a whole, since kernels that add in varying order
    make two passes differ. OPT and others call a part of it, so theirs come from two.

    Raises UserError where the head gets other inputs than last_hidden_states (BERT transforms them once more).
    """
    ids = [language_config(model.config).bos_token_id or 0, *range(5, 12)]
    tokens = torch.tensor([ids], device=model.get_input_embeddings().weight.device)
    states, inputs = [], []
    hooks = [
        model.base_model.register_forward_hook(lambda *call: states.append(call[-1].last_hidden_state[0])),
        head.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0].reshape(len(ids), -1))),
    ]
    try:
        logits = model(input_ids=tokens, use_cache=False).logits[0].float()
    finally:
        for hook in hooks:
            hook.remove()
    hidden = states[0] if states else last_hidden_states(model, ids)
    if not inputs or inputs[0].shape != hidden.shape or not is_near(inputs[0], hidden):
        raise UserError(
            f"{type(model).__name__} does not give its last hidden states to its output head as they are; such models "
            "are not supported: choose another"
        )
    return hidden, logits


def relative_difference(first: torch.Tensor, second: torch.Tensor) -> float:
    """Norm of the difference of two tensors ÷ norm of the second, in float32."""
    return float((first.float().to(second.device) - second.float()).norm() / second.float().norm())


def largest_of(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of two tensors [T, vocabulary] the entries [T, 1] where the second's magnitude is largest.

    A soft cap changes these; the small logits, which outnumber them, nearly keep their values under it.
    """
    places = second.abs().argmax(-1, keepdim=True)
    return first.to(second.device).gather(-1, places), second.gather(-1, places)


def is_near(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors differ by no more than rounding. Infinite and NaN ones pass: the measurements report them."""
    difference = relative_difference(first, second)
    return difference < LARGEST_ROUNDING or not math.isfinite(difference)


def positions_at_once(vocabulary: int) -> int:
    """The number of positions whose float32 logits have at most SLICE_ELEMENTS entries; at least 1, at most 256."""
    return max(1, min(256, SLICE_ELEMENTS // vocabulary))


def slices_of(positions: int, vocabulary: int) -> Iterator[slice]:
    """Slices of 0 … positions - 1 in order, each of positions_at_once or fewer."""
    step = positions_at_once(vocabulary)
    for start in range(0, positions, step):
        yield slice(start, min(start + step, positions))


def index_of_largest(values: torch.Tensor) -> torch.Tensor:
    """[n, vocabulary] → [n] int64; by numpy on a CPU, where it takes a tenth of torch's time."""
    return values.argmax(-1) if values.is_cuda else torch.from_numpy(values.float().numpy().argmax(-1))


def token_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-ln p(target) in nats; logits [n, vocabulary] float32, targets [n] → [n]. Not finite where logits are not."""
    return torch.nn.functional.cross_entropy(logits, targets.to(logits.device, non_blocking=True), reduction="none")


def negative_log_likelihoods(hidden: torch.Tensor, targets: torch.Tensor, head, vocabulary: int) -> torch.Tensor:
    """token_losses of hidden states [T, width] with targets [T] → [T]; their logits never exist all at once."""
    return torch.cat([token_losses(head(hidden[part]), targets[part]) for part in slices_of(len(hidden), vocabulary)])


@contextlib.contextmanager
def background_scorer(
    device: torch.device, waiting: int = 2, small_results: bool = False, long_passes: bool = False
) -> Iterator[Callable[..., None]]:
    """Gives submit(compute, collect, *arguments), which runs collect(compute(*arguments)) in the background, in order.

    On a CPU a thread runs both. It takes one of the job's cores and leaves the others to the caller. long_passes: the
    caller's passes are over whole windows, which two cores compute faster than one; where a job has fewer than
    MANY_CORES, the caller then keeps them all and the thread shares them. On a GPU the caller launches `compute`, which
    takes a moment, and the thread waits for the result. At most `waiting` results wait to be collected, so memory is
    bounded. small_results: a few numbers a position, of which many may wait on a GPU: else it would idle until the
    first layers of the next pass are launched. An exception is raised by a later submit, or at the end.
    """
    if small_results and device.type == "cuda":
        waiting = SMALL_RESULTS
    threads = torch.get_num_threads()
    pending: collections.deque[concurrent.futures.Future] = collections.deque()

    def submit(compute: Callable[..., Any], collect: Callable[[Any], object], *arguments: Any) -> None:
        while len(pending) > waiting:
            pending.popleft().result()
        if device.type == "cuda":
            pending.append(thread.submit(collect, compute(*arguments)))
        else:
            pending.append(thread.submit(lambda: collect(compute(*arguments))))

    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        thread.submit(torch.get_num_threads).result()  # else the first operation would reset the number set next
        thread.submit(torch.set_num_threads, 1).result()
        # Last: OpenMP's number is per thread, MKL's holds for all threads.
        torch.set_num_threads(threads if long_passes and threads < MANY_CORES else max(1, threads - 1))
        try:
            yield submit
            while pending:
                pending.popleft().result()
        finally:
            torch.set_num_threads(threads)
