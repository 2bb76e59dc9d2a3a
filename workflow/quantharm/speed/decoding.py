"""Greedy decoding with a cache: keys and values, or a recurrent model's states."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers.generation.utils import ALL_CACHE_NAMES

from quantharm.common.errors import UserError
from quantharm.speed.device_meters import synchronise

# {argument of the model's forward: its cache}; architectures have caches of many classes
Cache = dict[str, Any]
Stopped = Callable[[list[int]], bool]  # whether an answer may end after these tokens

DEGENERATE_TAIL = 24  # last tokens of a response, which is degenerate where they repeat one cycle
LONGEST_CYCLE = 4  # tokens


@dataclass(frozen=True)
class Continuation:
    """One greedy continuation."""

    token_ids: list[int]  # with the end-of-sequence token
    stop_reason: str  # end_of_sequence, stopped, length, context or not_finite
    seconds: float
    time_to_first_token_seconds: float
    finite: bool  # whether all logits were


def never(tokens: list[int]) -> bool:
    """Stopped of answers that go on to their end-of-sequence token."""
    return False


def why_ended(tokens: list[int], eos_token_ids: set[int], stopped: Stopped) -> str | None:
    """`end_of_sequence` or `stopped` where an answer ends with its last token; None where it goes on."""
    if tokens[-1] in eos_token_ids:
        return "end_of_sequence"
    return "stopped" if stopped(tokens) else None


def eos_token_ids_of(model, tokenizer) -> set[int]:
    """The end-of-sequence tokens of a model's generation config, and the tokenizer's own."""
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return {i for i in [*ids, tokenizer.eos_token_id] if i is not None}


def cache_of(output) -> Cache:
    """The cache that a forward pass leaves for the next token, by the name under which the model takes it back."""
    for name in ALL_CACHE_NAMES:
        if output.get(name) is not None:
            return {name: output[name]}
    raise UserError(f"{type(output).__name__} holds no cache, so its model cannot decode token by token; name another")


def prefill(model, prompt: torch.Tensor) -> tuple[torch.Tensor, Cache]:
    """(logits of the last position [batch, vocabulary], cache); prompt: [batch, T]."""
    cache = {"past_key_values": model.new_cache()} if hasattr(model, "new_cache") else {}  # of a method's `kv_cache:`
    output = model(input_ids=prompt, use_cache=True, logits_to_keep=1, **cache)
    return output.logits[:, -1], cache_of(output)


def decode_one_token(model, token: torch.Tensor, cache: Cache) -> tuple[torch.Tensor, Cache]:
    """(logits [batch, vocabulary], cache) after one more token; token: [batch, 1]."""
    output = model(input_ids=token, use_cache=True, **cache)
    return output.logits[:, -1], cache_of(output)


def continue_greedily(
    model,
    ids: list[int],
    new_tokens: int,
    eos_token_ids: set[int],
    context: int | None,
    stopped: Stopped = never,
) -> Continuation:
    """At most `new_tokens` greedy tokens after a prompt, batch 1, without sampler, penalty or logits processor.

    ids: of the prompt; context: tokens that the model was made for, None for any number.
    """
    device = model.get_input_embeddings().weight.device
    tokens: list[int] = []
    reason = "length"
    room = new_tokens if context is None else min(new_tokens, context - len(ids))
    synchronise(device)
    begin = time.perf_counter()
    first = None
    logits, cache = prefill(model, torch.tensor([ids], device=device))
    for step in range(room):
        token = logits.argmax(-1, keepdim=True)  # [1, 1]
        if not torch.isfinite(logits).all():
            reason = "not_finite"
            break
        tokens.append(int(token))
        first = first or time.perf_counter() - begin
        if ended := why_ended(tokens, eos_token_ids, stopped):
            reason = ended
            break
        if step + 1 < room:
            logits, cache = decode_one_token(model, token.to(device), cache)
    else:
        reason = "length" if room == new_tokens else "context"
    seconds = time.perf_counter() - begin
    return Continuation(tokens, reason, seconds, first or seconds, reason != "not_finite")


def is_degenerate(token_ids: list[int]) -> bool:
    """Whether a response ends in one short cycle, repeated."""
    tail = token_ids[-DEGENERATE_TAIL:]
    if len(tail) < DEGENERATE_TAIL:
        return False
    return any(tail[c:] == tail[:-c] for c in range(1, LONGEST_CYCLE + 1))
