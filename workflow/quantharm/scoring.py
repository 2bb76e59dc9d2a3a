"""From token ids to log-probabilities: one forward pass, the output head in float32, in slices of positions."""

import contextlib
from collections.abc import Callable, Iterator

import torch

from quantharm.errors import UserError

SLICE_ELEMENTS = 2**24  # logits held at once: 64 MB of float32


def check_ids(model, ids: list[int]) -> None:
    """Raises UserError for a sequence that is empty or longer than the model's context, or an id it does not know."""
    from quantharm.text import context_length

    context = context_length(model.config)
    if not ids:
        raise UserError("a prompt has no tokens; every prompt needs at least one")
    if context and len(ids) > context:
        raise UserError(
            f"a sequence has {len(ids)} tokens but the model's context is {context}; shorten the prompts or "
            "`max_new_tokens:`"
        )
    if max(ids) >= model.get_input_embeddings().weight.shape[0]:
        raise UserError(f"token id {max(ids)} is not in the model's vocabulary; is this the model's own tokenizer?")


def last_hidden_states(model, ids: list[int]) -> torch.Tensor:
    """Final hidden states of one sequence, batch 1, no padding; ids: T numbers, returns [T, width]."""
    device = model.get_input_embeddings().weight.device
    tokens = torch.tensor([ids], device=device)  # [1, T]
    return model.base_model(input_ids=tokens, use_cache=False).last_hidden_state[0]


@contextlib.contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Let float32 matrix products on a CPU round their factors to bfloat16 (`bf16`) or not (`ieee`)."""
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = precision
    try:
        yield
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


def output_head(model) -> Callable[[torch.Tensor], torch.Tensor]:
    """The output head in float32: hidden states [n, width] → logits [n, vocabulary].

    bfloat16 logits near 20 are 0.06 to 0.13 apart, more than the differences that are measured here. On CUDA the
    product reads the stored weights and accumulates in float32; elsewhere a float32 copy of the head is made once.
    What some architectures do to their logits afterwards (a scale, a soft cap) is done here too. The result is
    compared with the model's own logits once, so an architecture that does something else is refused, not mis-scored.
    """
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear:  # a quantized head: its own kernel is what is measured
        return lambda hidden: head(hidden.to(next(head.parameters()).device)).float()
    if head.weight.is_cuda and head.weight.dtype in (torch.bfloat16, torch.float16):
        transposed = head.weight.t()

        def apply(hidden: torch.Tensor) -> torch.Tensor:
            return torch.mm(hidden.to(transposed), transposed, out_dtype=torch.float32)
    else:
        weight = head.weight.float()
        # Factors that are bfloat16 numbers may be multiplied as such: exact, and faster where the CPU can.
        precision = "bf16" if head.weight.dtype == torch.bfloat16 else "ieee"

        def apply(hidden: torch.Tensor) -> torch.Tensor:
            with float32_products(precision if hidden.dtype == torch.bfloat16 else "ieee"):
                return hidden.to(weight.device).float() @ weight.t()

    bias = head.bias.float() if head.bias is not None else None

    scale = getattr(model.config, "logit_scale", None) or 1 / (getattr(model.config, "logits_scaling", None) or 1)
    cap = getattr(model.config, "final_logit_softcapping", None)

    def finished(hidden: torch.Tensor) -> torch.Tensor:
        logits = apply(hidden) if bias is None else apply(hidden) + bias
        logits = logits if scale == 1 else logits * scale
        return cap * torch.tanh(logits / cap) if cap else logits

    probe = [model.config.bos_token_id or 0, *range(5, 12)]
    tokens = torch.tensor([probe], device=model.get_input_embeddings().weight.device)
    states = []  # of the same pass as the logits: kernels that add in varying order make two passes differ
    hook = model.base_model.register_forward_hook(lambda *call: states.append(call[-1].last_hidden_state[0]))
    own = model(input_ids=tokens, use_cache=False).logits[0].float()
    hook.remove()
    difference = (own - finished(states[0]).to(own.device)).norm() / own.norm()
    if difference < 0.02 or not torch.isfinite(difference):  # what is not finite is told where it is measured
        return finished
    raise UserError(
        f"{type(model).__name__} changes its logits after the output head (they differ by {difference:.1%}); "
        "such models are not supported yet"
    )


def slices_of(positions: int, vocabulary: int) -> Iterator[slice]:
    """Slices of positions whose float32 logits stay small, whatever the vocabulary."""
    step = max(1, min(256, SLICE_ELEMENTS // vocabulary))
    for start in range(0, positions, step):
        yield slice(start, min(start + step, positions))


def negative_log_likelihoods(hidden: torch.Tensor, targets: torch.Tensor, head, vocabulary: int) -> torch.Tensor:
    """-ln p(target) in nats; hidden [T, width], targets [T] → [T] float32. Not finite where the logits are not."""
    losses = []
    for part in slices_of(len(hidden), vocabulary):
        logits = head(hidden[part])  # [n, vocabulary]
        losses.append(torch.nn.functional.cross_entropy(logits, targets[part].to(logits.device), reduction="none"))
    return torch.cat(losses)
