"""Timings of prefill and decode: repetitions of a batch of prompts of one length, batch 1 included.

Each gives medians with intervals and all values (medians.describe). Rates count the tokens of all sequences.
"""

import time
from collections.abc import Callable, Sequence

import torch

from quantharm.common.medians import describe
from quantharm.common.records.generation import Captured, Eager, FastestCaptured, PrefillRecord
from quantharm.common.text import context_length
from quantharm.speed.cuda_graph import captured_decoder
from quantharm.speed.decoding import decode_one_token, prefill
from quantharm.speed.device_meters import EnergyMeter, ProcessorWait, synchronise

CHECKED_TOKENS = 17  # of a captured step, whose graph is the same at each


def repeat(
    once: Callable[[], tuple[float, ...]], repetitions: int, seconds: float, meter: EnergyMeter
) -> tuple[list[tuple[float, ...]], float | None]:
    """(values of at least `repetitions` calls over at least `seconds`, their joules); two warm-ups come first."""
    for _ in range(2):
        once()
    begin, before = time.perf_counter(), meter.joules()
    values: list[tuple[float, ...]] = []
    while len(values) < repetitions or time.perf_counter() - begin < seconds:
        values.append(once())
    after = meter.joules()
    return values, None if before is None or after is None else after - before


def random_prompt(model, tokens: int, batch: int = 1) -> torch.Tensor:
    """[batch, tokens] random ids, the same for every method of a model."""
    embeddings = model.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, embeddings.shape[0], (batch, tokens), generator=generator).to(embeddings.device)


def fitting_lengths(
    model, prompt_tokens: int, new_tokens: int, prefill_tokens: Sequence[int], answered: int = 0
) -> tuple[int, list[int]]:
    """(tokens of the benchmark's prompt, further prompt lengths), cut where the model's context is shorter.

    answered: tokens of an answer that the further prompts leave room for.
    """
    context = context_length(model.config)
    if context is None:
        return prompt_tokens, sorted(set(prefill_tokens) - {prompt_tokens})
    prompt_tokens = min(prompt_tokens, context - new_tokens)
    return prompt_tokens, sorted({min(tokens, context - answered) for tokens in prefill_tokens} - {prompt_tokens})


def energy(joules: float | None, repetitions: int, prompt: torch.Tensor, new_tokens: int) -> float | None:
    """Joules a new token, prefill included; None where none were counted."""
    return None if joules is None else joules / repetitions / new_tokens / len(prompt)


def joules_of_more_tokens(eager: Eager, prefill: PrefillRecord, timed: int, wanted: int) -> float | None:
    """Joules a new token of an eager decoding of `wanted` tokens, batch 1, by one of `timed` tokens.

    Both include the prefill, whose share is the larger the fewer tokens follow.
    """
    of_each, of_prefill = eager["joules_per_new_token"], prefill["joules"]
    if of_each is None or of_prefill is None or timed in (1, wanted):
        return of_each
    step = (of_each * timed - of_prefill) / (timed - 1)
    return (of_prefill + step * (wanted - 1)) / wanted


def eager_benchmark(model, prompt: torch.Tensor, new_tokens: int, repetitions: int, seconds: float, meter) -> Eager:
    """Prefill and eager decode of prompt [batch, T]; decode counts the tokens after the first, which prefill gives.

    Decoding goes on past end-of-sequence tokens, so every repetition does the same work.
    """
    device = prompt.device

    def once() -> tuple[float, float]:
        synchronise(device)
        begin = time.perf_counter()
        logits, cache = prefill(model, prompt)
        token = logits.argmax(-1, keepdim=True)
        synchronise(device)
        middle = time.perf_counter()
        for _ in range(new_tokens - 1):
            logits, cache = decode_one_token(model, token, cache)
            token = logits.argmax(-1, keepdim=True)
        synchronise(device)
        return middle - begin, len(prompt) * (new_tokens - 1) / (time.perf_counter() - middle)

    wait = ProcessorWait()
    values, joules = repeat(once, repetitions, seconds, meter)
    return {
        "repetitions": len(values),
        "processor_wait_share": wait.share(),
        "prefill_seconds": describe([v[0] for v in values]),
        "decode_tokens_per_second": describe([v[1] for v in values]),
        "joules_per_new_token": energy(joules, len(values), prompt, new_tokens),
    }


def prefill_benchmark(model, prompt: torch.Tensor, repetitions: int, meter: EnergyMeter) -> PrefillRecord:
    """Prefill alone, of prompt [batch, T]."""

    def once() -> tuple[float]:
        synchronise(prompt.device)
        begin = time.perf_counter()
        logits, _ = prefill(model, prompt)
        logits.argmax(-1)
        synchronise(prompt.device)
        return (time.perf_counter() - begin,)

    values, joules = repeat(once, repetitions, 0.0, meter)
    return {
        "prompt_tokens": prompt.shape[1],
        "seconds": describe([value[0] for value in values]),
        "joules": None if joules is None else joules / len(values),
    }


def captured_benchmark(
    model,
    prompt: torch.Tensor,
    new_tokens: int,
    repetitions: int,
    seconds: float,
    meter: EnergyMeter,
    compiled: bool = False,
    checked_tokens: int = CHECKED_TOKENS,
) -> Captured:
    """Decode by replaying a captured and checked step; the `reason` alone where there is none. prompt: [batch, T].

    checked_tokens: at most so many are decoded by the check, in three other ways, each as slow as eager decoding.
    """
    begin = time.perf_counter()
    checked = min(checked_tokens, new_tokens) - 1
    decoder, check = captured_decoder(model, prompt, checked, compiled, prompt.shape[1] + new_tokens)
    capture_seconds = time.perf_counter() - begin
    if decoder is None:
        return {"reason": check}

    def once() -> tuple[float]:
        decoder.prefill(prompt)
        synchronise(prompt.device)
        begin = time.perf_counter()
        decoder.decode(new_tokens - 1)
        synchronise(prompt.device)
        return (len(prompt) * (new_tokens - 1) / (time.perf_counter() - begin),)

    values, joules = repeat(once, repetitions, seconds, meter)
    return {
        "decode_tokens_per_second": describe([v[0] for v in values]),
        "repetitions": len(values),
        "joules_per_new_token": energy(joules, len(values), prompt, new_tokens),
        "capture_seconds": capture_seconds,  # the check included
        "check": check,
    }


def fastest_captured(
    model,
    prompt: torch.Tensor,
    new_tokens: int,
    repetitions: int,
    seconds: float,
    meter: EnergyMeter,
    compile_too: bool,
) -> FastestCaptured:
    """The faster of two captured steps, of the model's own kernels and of those fused by torch.compile.

    The other one is beside it, under `other`.
    """
    arguments = model, prompt, new_tokens, repetitions, seconds, meter
    uncompiled: FastestCaptured = {**captured_benchmark(*arguments, False), "compiled": False}
    if not compile_too:
        return uncompiled
    compiled: FastestCaptured = {**captured_benchmark(*arguments, True), "compiled": True}
    first, other = sorted([uncompiled, compiled], key=rate_of, reverse=True)
    return {**first, "other": other}


def rate_of(captured: Captured) -> float:
    """Median tokens a second; 0 where nothing was captured."""
    return captured["decode_tokens_per_second"]["median"] if "decode_tokens_per_second" in captured else 0.0
