"""Greedy decoding with a cache: keys and values, or a recurrent model's states."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers.generation.utils import ALL_CACHE_NAMES

from quantharm.common.errors import UserError
from quantharm.speed.device_meters import synchronise

Cache = dict[str, Any]  # {argument of the model's forward: its cache}
Stopped = Callable[[list[int]], bool]  # whether the tokens of an answer so far are enough

DEGENERATE_TAIL = 24  # a response whose last 24 tokens repeat a cycle of at most 4 is degenerate
LONGEST_CYCLE = 4


@dataclass(frozen=True)
class Continuation:
    """One greedy continuation."""

    token_ids: list[int]  # an end-of-sequence token included
    stop_reason: str  # end_of_sequence, stopped, length, context or not_finite
    seconds: float
    time_to_first_token_seconds: float
    finite: bool


def never(tokens: list[int]) -> bool:
    """No answer is enough before its end."""
    return False


def why_ended(tokens: list[int], eos_token_ids: set[int], stopped: Stopped) -> str | None:
    """`end_of_sequence` or `stopped`, where the last of an answer's tokens ended it; None where it goes on."""
    if tokens[-1] in eos_token_ids:
        return "end_of_sequence"
    return "stopped" if stopped(tokens) else None


def end_tokens(model, tokenizer) -> set[int]:
    """Ids that end a response: the generation config's, and the tokenizer's own."""
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return {i for i in [*ids, tokenizer.eos_token_id] if i is not None}


def cache_of(output) -> Cache:
    """The cache that a forward pass leaves for the next token, by the name under which the model takes it back."""
    for name in ALL_CACHE_NAMES:
        if output.get(name) is not None:
            return {name: output[name]}
    raise UserError(f"{type(output).__name__} holds no cache, so its model cannot decode token by token")


def prefill(model, prompt: torch.Tensor) -> tuple[torch.Tensor, Cache]:
    """(logits of the last position [1, vocabulary], cache); prompt: [1, T]."""
    own = {"past_key_values": model.new_cache()} if hasattr(model, "new_cache") else {}  # a method's `kv_cache:`
    output = model(input_ids=prompt, use_cache=True, logits_to_keep=1, **own)
    return output.logits[:, -1], cache_of(output)


def decode_one_token(model, token: torch.Tensor, cache: Cache) -> tuple[torch.Tensor, Cache]:
    """(logits [1, vocabulary], cache) after one more token; token: [1, 1]."""
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
    """At most `new_tokens` greedy tokens after a prompt, batch 1; no sampler, penalty or processor of any kind."""
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
    """Whether the end of a response is one short cycle over and over."""
    tail = token_ids[-DEGENERATE_TAIL:]
    if len(tail) < DEGENERATE_TAIL:
        return False
    return any(tail[c:] == tail[:-c] for c in range(1, LONGEST_CYCLE + 1))
