"""Decoding without Python: one step over a KV cache of fixed size, captured as a CUDA graph and replayed.

Eager decoding of a large model on a fast GPU times the interpreter that launches its kernels. A captured step launches
all of them at once, so its time is the kernels' own. It is believed only where it gives the tokens and logits of the
same step uncaptured, and the logits of ordinary eager decoding over a growing cache.
"""

import contextlib
import inspect

import torch
from transformers.cache_utils import Cache, DynamicCache, StaticLayer

from quantharm.common.errors import UserError, first_line
from quantharm.common.text import language_config

KL_LIMIT = 1e-2  # nats, at any step
TIE = 2**-6  # of the largest logit: two roundings to bfloat16
WARM_UP_STEPS = 3
GROWING_LAYERS = ("DynamicLayer", "DynamicSlidingWindowLayer")  # of keys and values; a fixed size can replace them


def why_not(model, tokens: int) -> str | None:
    """The reason why decoding up to `tokens` tokens cannot be captured, None where it may be tried."""
    device = model.get_input_embeddings().weight.device
    if device.type != "cuda":
        return "CUDA graphs need a GPU"
    if len({p.device for p in model.parameters()}) > 1:
        return "the model is spread over several GPUs"
    for module in model.modules():
        if type(module).__name__ == "Linear8bitLt" and module.state.threshold > 0:
            return "LLM.int8 with a threshold looks for outliers on the host at every layer, which no graph can hold"
    reason = why_no_fixed_cache(model)
    if reason:
        return reason
    window = getattr(language_config(model.config), "sliding_window", None)
    if window and tokens > window:
        return f"{tokens} tokens are more than the model's sliding window of {window}"
    return None


def cache_layers(model) -> list:
    """The layers of the cache that the model decodes with, empty."""
    return DynamicCache(config=model.config).layers


def why_no_fixed_cache(model) -> str | None:
    """The reason why a model cannot decode over keys and values of a fixed size, None where it can."""
    if "past_key_values" not in inspect.signature(model.forward).parameters:
        return f"{type(model).__name__} keeps recurrent states instead of keys and values"
    others = {type(layer).__name__ for layer in cache_layers(model)} - set(GROWING_LAYERS)
    if others:
        return f"{type(model).__name__} keeps more than keys and values ({', '.join(sorted(others))})"
    return None


class StaticDecoder:
    """Greedy decoding of one sequence over a cache of fixed size; all of its state lies on the device.

    `compiled` lets torch.compile fuse the step's small kernels before it is captured.
    """

    def __init__(self, model, length: int, compiled: bool = False):
        self.model = model
        device = model.get_input_embeddings().weight.device
        dtype = model.get_input_embeddings().weight.dtype
        self.cache = Cache(layers=[StaticLayer(max_cache_len=length) for _ in cache_layers(model)])
        self.token = torch.zeros((1, 1), dtype=torch.long, device=device)
        self.position = torch.zeros((1, 1), dtype=torch.long, device=device)
        self.columns = torch.arange(length, device=device)
        self.masked = torch.tensor(torch.finfo(dtype).min, dtype=dtype, device=device)
        self.logits: torch.Tensor | None = None  # [1, vocabulary]
        self.graph: torch.cuda.CUDAGraph | None = None
        self.forward = torch.compile(self.next_logits, dynamic=False) if compiled else self.next_logits

    def mask(self, rows: torch.Tensor) -> torch.Tensor:
        """[1, 1, len(rows), length]: 0 where a position may be seen, the smallest number elsewhere."""
        return torch.where(self.columns <= rows.unsqueeze(-1), torch.zeros_like(self.masked), self.masked)[None, None]

    def prefill(self, prompt: torch.Tensor) -> None:
        """Start anew with a prompt [1, T]; leaves its next token in place."""
        self.cache.reset()
        rows = torch.arange(prompt.shape[1], device=prompt.device)
        output = self.model(
            input_ids=prompt,
            position_ids=rows[None],
            attention_mask=self.mask(rows),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.token.copy_(output.logits[:, -1].argmax(-1, keepdim=True))
        self.position.fill_(prompt.shape[1])

    def next_logits(self, token: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Logits [1, vocabulary] after one more token at a position, both [1, 1]."""
        output = self.model(
            input_ids=token,
            position_ids=position,
            attention_mask=self.mask(position[0]),
            past_key_values=self.cache,
            use_cache=True,
        )
        return output.logits[:, -1]

    def step(self) -> None:
        """One token on: its logits, the next token, the next position; nothing of it waits for the host."""
        logits = self.forward(self.token, self.position)
        if self.logits is None:
            self.logits = torch.empty_like(logits)
        self.logits.copy_(logits)
        self.token.copy_(logits.argmax(-1, keepdim=True))
        self.position.add_(1)

    def capture(self, prompt: torch.Tensor) -> None:
        """Record one step; afterwards `decode` replays it. Raises RuntimeError where something cannot be recorded."""
        self.prefill(prompt)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_STEPS):  # kernels chosen, memory taken
                self.step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        self.graph = graph

    def decode(self, steps: int, replay: bool = True) -> None:
        for _ in range(steps):
            if replay and self.graph is not None:
                self.graph.replay()
            else:
                self.step()

    def trajectory(
        self, prompt: torch.Tensor, steps: int, replay: bool, tokens: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(choices [steps + 1], logits [steps, vocabulary]) from a prompt on, fed its own choices or `tokens`."""
        self.prefill(prompt)
        choices, logits = [self.token.clone()], []
        for step in range(steps):
            if tokens is not None:
                self.token.copy_(tokens[step].view(1, 1))
            self.decode(1, replay)
            choices.append(self.token.clone())
            logits.append(self.logits.clone())
        return torch.cat(choices).flatten(), torch.cat(logits)


def eager_logits(model, prompt: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [steps, vocabulary] of ordinary decoding over a growing cache, fed tokens [steps] after the prompt."""
    cache = model(input_ids=prompt, use_cache=True, logits_to_keep=1).past_key_values
    logits = []
    for token in tokens:
        output = model(input_ids=token.view(1, 1), past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits.append(output.logits[:, -1])
    return torch.cat(logits)


def largest_kl(first: torch.Tensor, second: torch.Tensor) -> float:
    """Largest KL(first ‖ second) over rows of logits, in nats, in float64."""
    ln_p, ln_q = torch.log_softmax(first.double(), -1), torch.log_softmax(second.double(), -1)
    return float((ln_p.exp() * (ln_p - ln_q)).sum(-1).abs().max())


def beyond_ties(choices: torch.Tensor, logits: torch.Tensor, noise: float = 0.0) -> int:
    """Rows of logits in which the choice is not the largest, nor as near to it as two roundings or twice the noise."""
    logits = logits.float()
    largest = logits.amax(-1)
    chosen = logits.gather(-1, choices.view(-1, 1))[:, 0]
    tie = (TIE * logits.abs().amax(-1)).clamp_min(2 * noise)
    return int((~(largest - chosen <= tie)).sum())


def verify(decoder: StaticDecoder, prompt: torch.Tensor, steps: int) -> dict[str, float | int]:
    """Replayed steps against the same steps uncaptured and against eager decoding, all fed the replay's tokens.

    Tokens may differ from the uncaptured steps' only where two logits tie, by rounding or by what two uncaptured passes
    differ by (some kernels add in varying order). Eager decoding runs other attention kernels in 16 bits: there the
    logits are held to the limit and the tokens are counted. Raises UserError where something differs by more.
    """
    tokens, logits = decoder.trajectory(prompt, steps, replay=True)
    fed, choices = tokens[:-1], tokens[1:]
    plain, again = (decoder.trajectory(prompt, steps, False, fed)[1] for _ in range(2))
    eager = eager_logits(decoder.model, prompt, fed)
    noise = float((plain.float() - again.float()).abs().max())
    check = {
        "steps": steps,
        "same_tokens": int((choices == plain.argmax(-1)).sum()),
        "same_tokens_but_ties": steps - beyond_ties(choices, plain, noise),
        "kl_nats_max": largest_kl(plain, logits),
        "kl_nats_max_of_two_uncaptured": largest_kl(plain, again),
        "logit_difference_max": float((logits.float() - plain.float()).abs().max()),
        "eager_same_tokens": int((choices == eager.argmax(-1)).sum()),
        "eager_kl_nats_max": largest_kl(eager, logits),
        "kl_nats_limit": KL_LIMIT,
    }
    if check["same_tokens_but_ties"] < steps:
        wrong = steps - check["same_tokens_but_ties"]
        raise UserError(f"captured decoding chose other tokens than uncaptured in {wrong} of {steps} steps")
    for key in ("kl_nats_max", "eager_kl_nats_max"):
        if not check[key] <= KL_LIMIT:
            raise UserError(f"captured logits are {check[key]:.3g} nats off ({key}, limit {KL_LIMIT:g})")
    return check


def recompiling(model):
    """torch.compile may specialise a function for each layer, where it cannot trace the model as a whole."""
    return torch._dynamo.config.patch(recompile_limit=4 * len(cache_layers(model)))


def captured_decoder(model, prompt: torch.Tensor, steps: int, compiled: bool = False):
    """(decoder, what its check found), or (None, the reason why there is none); prompt: [1, T]."""
    length = prompt.shape[1] + steps + WARM_UP_STEPS + 1
    reason = why_not(model, length)
    if reason:
        return None, reason
    try:
        decoder = StaticDecoder(model, length, compiled)
        with recompiling(model) if compiled else contextlib.nullcontext():
            decoder.capture(prompt)
        return decoder, verify(decoder, prompt, steps)
    except UserError as error:
        return None, str(error)
    except (
        RuntimeError,
        ValueError,
        TypeError,
        AttributeError,
    ) as error:  # a model or a kernel that cannot be recorded
        return None, f"the step could not be captured: {first_line(error)}"
