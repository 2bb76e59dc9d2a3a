"""Decoding without Python: one step over a KV cache of fixed size, captured as a CUDA graph and replayed.

Eager decoding of a large model on a fast GPU times the interpreter that launches its kernels. A captured step launches
all of them at once, so its time is the kernels' own. It is used only where it gives the tokens and logits of the same
step uncaptured, and the logits of ordinary eager decoding over a growing cache.
"""

import contextlib

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from quantharm.common.errors import UserError, first_line
from quantharm.common.records.generation import CapturedCheck
from quantharm.speed.decoding import decode_one_token, prefill
from quantharm.speed.fixed_cache import cache_layers, why_no_fixed_cache
from quantharm.speed.static_decoder import WARM_UP_STEPS, StaticDecoder

KL_LIMIT = 1e-2  # nats, at any step
NOISE_FACTOR = 4  # times what two uncaptured passes differ by, where a kernel adds in varying order: twice, in logits
LARGEST_LIMIT = 0.1  # nats, however much they differ by: a wrong step is whole nats off
TIE = 2**-6  # of the largest logit: two roundings to bfloat16


def why_not_captured(model) -> str | None:
    """The reason why decoding cannot be captured, None where it may be tried."""
    device = model.get_input_embeddings().weight.device
    if device.type != "cuda":
        return "CUDA graphs need a GPU"
    if len({p.device for p in model.parameters()}) > 1:
        return "the model is spread over several GPUs"
    for module in model.modules():
        if type(module).__name__ == "Linear8bitLt" and module.state.threshold > 0:
            return "LLM.int8 with a threshold looks for outliers on the host at every layer, which no graph can hold"
    return why_no_fixed_cache(model)


def eager_logits(model, prompt: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [steps + 1, batch, vocabulary] of eager decoding: after prompt [batch, T], then after each of `tokens`.

    tokens: [steps, batch], fed one by one.
    """
    logits, cache = prefill(model, prompt)
    rows = [logits]
    for token in tokens:
        logits, cache = decode_one_token(model, token.view(-1, 1), cache)
        rows.append(logits)
    return torch.stack(rows)


def kl_of_another_attention(model, prompt: torch.Tensor, tokens: torch.Tensor, eager: torch.Tensor) -> float:
    """Largest KL in nats between `eager`, from eager_logits, and the same decoding by PyTorch's plain attention kernel.

    Neither is wrong: kernels round differently. Layers that round their inputs to 8 bits make the difference larger.
    """
    with sdpa_kernel(SDPBackend.MATH):
        return largest_kl(eager, eager_logits(model, prompt, tokens))


def largest_kl(first: torch.Tensor, second: torch.Tensor) -> float:
    """Largest KL(first ‖ second) over rows of logits [..., vocabulary], in nats, in float64."""
    largest = []
    for p, q in zip(first.flatten(0, -2).split(8), second.flatten(0, -2).split(8), strict=True):
        ln_p, ln_q = torch.log_softmax(p.double(), -1), torch.log_softmax(q.double(), -1)
        largest.append((ln_p.exp() * (ln_p - ln_q)).sum(-1).abs().max())
    return float(torch.stack(largest).max())  # NaN where any of them is


def beyond_ties(choices: torch.Tensor, logits: torch.Tensor, noise: float = 0.0) -> int:
    """The number of choices whose logit is below the largest by more than a tie: two roundings, or twice the noise.

    choices: [...] token ids; logits: [..., vocabulary]; noise: in logits.
    """
    logits = logits.float()
    largest = logits.amax(-1)
    chosen = logits.gather(-1, choices.unsqueeze(-1))[..., 0]
    tie = (TIE * logits.abs().amax(-1)).clamp_min(2 * noise)
    return int((~(largest - chosen <= tie)).sum())


def verify(decoder: StaticDecoder, prompt: torch.Tensor, steps: int) -> CapturedCheck:
    """Compares replayed steps with the same steps uncaptured and with eager decoding, all fed the replay's tokens.

    Tokens may differ from the uncaptured steps' only where two logits tie: by rounding, or by the difference of two
    uncaptured passes, since some kernels add in varying order. That difference widens the limit of the logits, too.
    Eager decoding runs other attention kernels in 16 bits: its tokens are only counted, and where its logits miss the
    limit, what another kernel changes in eager decoding itself widens it. Raises UserError where something differs by
    more.
    """
    tokens, logits = decoder.trajectory(prompt, steps, replay=True)
    fed, choices = tokens[:-1], tokens[1:]
    plain, again = (decoder.trajectory(prompt, steps, False, fed)[1] for _ in range(2))
    eager = eager_logits(decoder.model, prompt, fed)
    noise = float((plain.float() - again.float()).abs().max())
    kl_of_noise = largest_kl(plain, again)
    limit = limit_beside(kl_of_noise)
    eager_kl, kl_of_kernels = largest_kl(eager[1:], logits), None
    if not eager_kl <= limit:
        kl_of_kernels = kl_of_another_attention(decoder.model, prompt, fed, eager)
    chosen = choices.numel()
    record: CapturedCheck = {
        "steps": steps,
        "tokens": chosen,
        "same_tokens": int((choices == plain.argmax(-1)).sum()),
        "same_tokens_but_ties": chosen - beyond_ties(choices, plain, noise),
        "kl_nats_max": largest_kl(plain, logits),
        "kl_nats_max_of_two_uncaptured": kl_of_noise,
        "logit_difference_max": float((logits.float() - plain.float()).abs().max()),
        "eager_same_tokens": int((choices == eager[1:].argmax(-1)).sum()),
        "eager_kl_nats_max": eager_kl,
        "eager_kl_nats_max_of_two_kernels": kl_of_kernels,
        "kl_nats_limit": limit,
        "eager_kl_nats_limit": max(limit, limit_beside(kl_of_kernels or 0.0)),
    }
    if record["same_tokens_but_ties"] < chosen:
        wrong = chosen - record["same_tokens_but_ties"]
        raise UserError(f"captured decoding chose other tokens than uncaptured in {wrong} of {chosen} steps")
    raise_beyond("kl_nats_max", record["kl_nats_max"], limit)
    raise_beyond("eager_kl_nats_max", eager_kl, record["eager_kl_nats_limit"])
    return record


def limit_beside(noise: float) -> float:
    """Nats that a captured step may be off, where sound passes differ by `noise` nats."""
    return min(max(KL_LIMIT, NOISE_FACTOR * noise), LARGEST_LIMIT)


def raise_beyond(key: str, kl: float, limit: float) -> None:
    """Raises UserError unless kl, in nats, is within the limit."""
    if not kl <= limit:  # NaN, too
        raise UserError(f"captured logits are {kl:.3g} nats off ({key}, limit {limit:.3g})")


def recompiling(model):
    """Within the block torch.compile may compile a function anew for each layer, where it cannot trace the whole."""
    return torch._dynamo.config.patch(recompile_limit=4 * len(cache_layers(model)))


def captured_decoder(model, prompt: torch.Tensor, steps: int, compiled: bool = False, length: int = 0):
    """(decoder, the figures of its check), or (None, the reason why there is none); prompt: [batch, T].

    steps: tokens that the check decodes. length: tokens that the cache holds, where more are to be decoded.
    compiled: torch.compile fuses the step's kernels first.
    """
    reason = why_not_captured(model)
    if reason:
        return None, reason
    batch, tokens = prompt.shape
    length = max(length, tokens + max(steps, WARM_UP_STEPS + 1))
    try:
        decoder = StaticDecoder(model, length, batch, compiled)
        with recompiling(model) if compiled else contextlib.nullcontext():
            decoder.capture(prompt)
        return decoder, verify(decoder, prompt, steps)
    except UserError as error:
        return None, str(error)
    except Exception as error:  # whatever a model, a kernel or a library raises that cannot be recorded
        return None, f"the step could not be captured: {first_line(error)}"
