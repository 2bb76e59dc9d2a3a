"""The benchmark of the generation stage: prefill and decode by a fixed prompt, batch 1.

Prefill is the time from a prompt on the device to its first token there: the time to first token without tokenizing.
Decode is timed twice: eagerly, as a Python loop runs it, and captured as a CUDA graph (`captured`), which leaves the
kernels' own time; with `compile_too` also after torch.compile has fused its small kernels. Of each:

    bytes per second = bytes moved / seconds per token; moved are all weights that a token reads, the KV cache so far,
        on average, and a recurrent model's states, which are read and written
    share of copy bandwidth = that / what a copy within the device's memory moves per second, read and written
    host_wait_share = 1 - kernels' seconds per token (by profiler) / eager seconds per token

The first two repetitions are discarded (allocation, kernel choice). Medians with intervals, and all values.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin, LinearAttentionCacheLayerMixin

from quantharm.common.statistics import describe
from quantharm.common.text import context_length
from quantharm.quantizers.quantized_layers import model_bytes, tensor_bytes
from quantharm.speed.cuda_graph import captured_decoder
from quantharm.speed.decoding import Cache, decode_one_token, prefill
from quantharm.speed.device_meters import EnergyMeter, copy_bandwidth, kernel_seconds, synchronise

PROFILED_TOKENS = 8


def repeat(
    once: Callable[[], tuple[float, ...]], repetitions: int, seconds: float, meter: EnergyMeter
) -> tuple[list[tuple[float, ...]], float | None]:
    """(values of at least `repetitions` calls over at least `seconds`, their joules); two more come first, unused."""
    for _ in range(2):
        once()
    begin, before = time.perf_counter(), meter.joules()
    values = []
    while len(values) < repetitions or time.perf_counter() - begin < seconds:
        values.append(once())
    after = meter.joules()
    return values, None if before is None else after - before


def random_prompt(model, tokens: int) -> torch.Tensor:
    """[1, tokens] seeded ids, the same for every method of a model."""
    embeddings = model.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, embeddings.shape[0], (1, tokens), generator=generator).to(embeddings.device)


def weights_read(model) -> int:
    """Bytes of weights that decoding one token reads: all of them, but one row of an embedding table of its own."""
    table = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    tied = head is not None and getattr(head, "weight", None) is not None and head.weight is table
    return model_bytes(model) - (0 if tied else tensor_bytes(table) - tensor_bytes(table[0]))


def cache_bytes(cache: Cache) -> tuple[int, int]:
    """(bytes of keys and values, which grow with each token; bytes of recurrent states, which do not)."""
    grows = fixed = 0
    for kept in cache.values():
        for layer in getattr(kept, "layers", [kept]):
            if isinstance(layer, CacheLayerMixin) and layer.is_initialized:
                grows += tensor_bytes(layer.keys, layer.values)
            if isinstance(layer, LinearAttentionCacheLayerMixin):
                fixed += tensor_bytes(*layer.conv_states.values(), *layer.recurrent_states.values())
            elif isinstance(layer, list | tuple):  # RWKV's states
                fixed += tensor_bytes(*(t for t in layer if isinstance(t, torch.Tensor)))
    return grows, fixed


def eager_benchmark(model, prompt: torch.Tensor, new_tokens: int, repetitions: int, seconds: float, meter) -> dict:
    """Prefill and eager decode; decode counts the tokens after the first, which prefill gives.

    End-of-sequence tokens are decoded like any other, so every repetition does the same work.
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
        return middle - begin, (new_tokens - 1) / (time.perf_counter() - middle)

    values, joules = repeat(once, repetitions, seconds, meter)
    return {
        "repetitions": len(values),
        "prefill_seconds": describe([v[0] for v in values]),
        "decode_tokens_per_second": describe([v[1] for v in values]),
        "joules_per_new_token": None if joules is None else joules / len(values) / new_tokens,  # prefill included
    }


def prefill_benchmark(model, tokens: int, repetitions: int, meter: EnergyMeter) -> dict[str, Any]:
    """Prefill of a prompt of another length."""
    prompt = random_prompt(model, tokens)

    def once() -> tuple[float]:
        synchronise(prompt.device)
        begin = time.perf_counter()
        logits, _ = prefill(model, prompt)
        logits.argmax(-1)
        synchronise(prompt.device)
        return (time.perf_counter() - begin,)

    times = [value[0] for value in repeat(once, repetitions, 0.0, meter)[0]]
    return {"prompt_tokens": tokens, "seconds": describe(times)}


def captured_benchmark(
    model, prompt: torch.Tensor, new_tokens: int, repetitions: int, seconds: float, meter: EnergyMeter, compiled: bool
) -> dict[str, Any]:
    """Decode by replaying a captured step, after it was checked; {reason} where it cannot be."""
    begin = time.perf_counter()
    decoder, check = captured_decoder(model, prompt, new_tokens - 1, compiled)
    capture_seconds = time.perf_counter() - begin
    if decoder is None:
        return {"reason": check}

    def once() -> tuple[float]:
        decoder.prefill(prompt)
        synchronise(prompt.device)
        begin = time.perf_counter()
        decoder.decode(new_tokens - 1)
        synchronise(prompt.device)
        return ((new_tokens - 1) / (time.perf_counter() - begin),)

    values, joules = repeat(once, repetitions, seconds, meter)
    return {
        "decode_tokens_per_second": describe([v[0] for v in values]),
        "repetitions": len(values),
        "joules_per_new_token": None if joules is None else joules / len(values) / new_tokens,
        "capture_seconds": capture_seconds,  # the check included
        "check": check,
    }


def fastest_captured(*arguments, compile_too: bool) -> dict[str, Any]:
    """The faster of the model's own kernels captured and of them fused by torch.compile; the other one beside it."""
    own = captured_benchmark(*arguments, compiled=False) | {"compiled": False}
    if not compile_too:
        return own
    compiled = captured_benchmark(*arguments, compiled=True) | {"compiled": True}
    first, other = sorted([own, compiled], key=lambda c: -c.get("decode_tokens_per_second", {}).get("median", 0.0))
    return first | {"other": other}


def host_wait_share(model, prompt: torch.Tensor, eager_tokens_per_second: float) -> float | None:
    """Share of the eager decode time in which the GPU waits for the host; None on a CPU."""
    if prompt.device.type != "cuda":
        return None
    logits, cache = prefill(model, prompt)
    state = {"token": logits.argmax(-1, keepdim=True), "cache": cache}

    def decode() -> None:
        for _ in range(PROFILED_TOKENS):
            logits, state["cache"] = decode_one_token(model, state["token"], state["cache"])
            state["token"] = logits.argmax(-1, keepdim=True)

    decode()  # warm-up
    return 1 - kernel_seconds(decode) / PROFILED_TOKENS * eager_tokens_per_second


def roofline(model, prompt: torch.Tensor, new_tokens: int, rates: dict[str, float | None]) -> dict[str, Any]:
    """What decoding moves against what the device's memory can; rates: tokens a second by name, None where unknown."""
    _, cache = prefill(model, prompt)
    grows, fixed = cache_bytes(cache)
    tokens = prompt.shape[1]
    moved = weights_read(model) + grows / tokens * (tokens + new_tokens / 2) + 2 * fixed
    record: dict[str, Any] = copy_bandwidth(prompt.device)
    record |= {"weight_bytes_per_token": weights_read(model), "bytes_per_token": round(moved)}
    for name, rate in rates.items():
        record[f"{name}_bytes_per_second"] = rate and moved * rate
        record[f"{name}_share_of_copy_bandwidth"] = rate and moved * rate / record["copy_bytes_per_second"]
    return record


def benchmark(
    model,
    prompt_tokens: int,
    new_tokens: int,
    repetitions: int,
    seconds: float,
    prefill_tokens: list[int] | tuple[int, ...] = (),
    compile_too: bool = False,
) -> dict[str, Any]:
    """All of it for one model: prompt_tokens + new_tokens decoded, and prefill at further lengths.

    Lengths are cut to what the model's context leaves room for.
    """
    context = context_length(model.config)
    prompt_tokens = min(prompt_tokens, context - new_tokens) if context else prompt_tokens
    prompt = random_prompt(model, prompt_tokens)
    meter = EnergyMeter(prompt.device)
    eager = eager_benchmark(model, prompt, new_tokens, repetitions, seconds, meter)
    lengths = sorted({min(tokens, context or tokens) for tokens in prefill_tokens} - {prompt_tokens})
    captured = fastest_captured(model, prompt, new_tokens, repetitions, seconds, meter, compile_too=compile_too)
    rate = eager["decode_tokens_per_second"]["median"]
    captured_rate = captured["decode_tokens_per_second"]["median"] if "reason" not in captured else None
    return {
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        **eager,
        "prefill": [prefill_benchmark(model, tokens, repetitions, meter) for tokens in lengths],
        "captured": captured,
        "host_wait_share": host_wait_share(model, prompt, rate),
        "roofline": roofline(model, prompt, new_tokens, {"eager": rate, "captured": captured_rate}),
        "energy_reason": meter.reason,
    }
