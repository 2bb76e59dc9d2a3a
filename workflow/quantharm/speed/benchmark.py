"""The benchmark of the generation stage: prefill and decode by a fixed prompt, batch 1, and of larger batches.

Prefill is the time from a prompt on the device to its first token there: the time to first token without tokenizing.
Decode is timed twice: eagerly, as a Python loop runs it, and captured as a CUDA graph (`captured`), which leaves the
kernels' own time; with `compile_too` also after torch.compile has fused its small kernels. Of each:

    bytes per second = bytes moved / seconds per token; moved are all weights that a token reads, the KV cache so far,
        on average, and a recurrent model's states, which are read and written
    share of copy bandwidth = that / what a copy within the device's memory moves per second, read and written
    host_wait_share = 1 - kernels' seconds per token (by profiler) / eager seconds per token

The first two repetitions are discarded (allocation, kernel choice). Medians with intervals, and all values. Where
decoding can be captured, the eager loop, up to 25 times as slow, is repeated only as often as an interval needs, over
at most EAGER_TOKENS tokens.
"""

from collections.abc import Sequence

import torch
from transformers.cache_utils import CacheLayerMixin, LinearAttentionCacheLayerMixin

from quantharm.common.records.generation import BenchmarkRecord, Roofline
from quantharm.models import attention
from quantharm.quantizers.quantized_layers import model_bytes, parts_of, tensor_bytes
from quantharm.speed import served, served_benchmark
from quantharm.speed.batches import REPETITIONS, batch_benchmark, batch_of_one
from quantharm.speed.decoding import Cache, decode_one_token, prefill
from quantharm.speed.device_meters import EnergyMeter, PeakMemory, copy_bandwidth, kernel_seconds
from quantharm.speed.timings import (
    eager_benchmark,
    fastest_captured,
    fitting_lengths,
    joules_of_more_tokens,
    prefill_benchmark,
    random_prompt,
    rate_of,
)

PROFILED_TOKENS = 8
EAGER_TOKENS = 16  # decoded of a prompt, where a captured rate is what users can reach


def weights_read(model) -> int:
    """Bytes of weights that decoding one token reads: all of them, but one row of an embedding table of its own.

    An engine that is not transformers knows its own.
    """
    if hasattr(model, "weight_bytes_per_token"):
        return model.weight_bytes_per_token
    table = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    tied = head is not None and getattr(head, "weight", None) is not None and head.weight is table
    return model_bytes(model) - (0 if tied else tensor_bytes(table) - tensor_bytes(table[0]))


def cache_bytes(cache: Cache) -> tuple[int, int]:
    """(bytes of keys and values, which grow with each token; bytes of recurrent states, which do not)."""
    grows = fixed = 0
    for kept in cache.values():
        if hasattr(kept, "cache_bytes"):  # an engine knows its own
            grows += kept.cache_bytes()
            continue
        for layer in getattr(kept, "layers", [kept]):
            if isinstance(layer, CacheLayerMixin) and layer.is_initialized:
                packed = [getattr(layer, f"_quantized_{part}", None) for part in ("keys", "values")]
                grows += tensor_bytes(layer.keys, layer.values, *parts_of_all(packed))
            if isinstance(layer, LinearAttentionCacheLayerMixin):
                fixed += tensor_bytes(*layer.conv_states.values(), *layer.recurrent_states.values())
            elif isinstance(layer, list | tuple):  # RWKV's states
                fixed += tensor_bytes(*(t for t in layer if isinstance(t, torch.Tensor)))
    return grows, fixed


def parts_of_all(packed: list) -> list[torch.Tensor]:
    """The plain tensors of a quantized layer's keys and values: codes and scales, in whatever it keeps them."""
    parts: list[torch.Tensor] = []
    for held in packed:
        if isinstance(held, torch.Tensor):
            parts += parts_of(held)
        elif isinstance(held, list | tuple):
            parts += parts_of_all(list(held))
    return parts


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


def roofline(model, prompt: torch.Tensor, new_tokens: int, eager: float, captured: float | None) -> Roofline:
    """Bytes that decoding moves beside those that memory can; eager, captured: tokens a second, None without any."""
    _, cache = prefill(model, prompt)
    grows, fixed = cache_bytes(cache)
    tokens = prompt.shape[1]
    moved = weights_read(model) + grows / tokens * (tokens + new_tokens / 2) + 2 * fixed
    copied = copy_bandwidth(prompt.device)
    able = copied["copy_bytes_per_second"]
    return {
        **copied,
        "kv_cache_bytes_per_token": round(grows / tokens, 1),
        "weight_bytes_per_token": weights_read(model),
        "bytes_per_token": round(moved),
        "eager_bytes_per_second": moved * eager,
        "eager_share_of_copy_bandwidth": moved * eager / able,
        "captured_bytes_per_second": captured and moved * captured,
        "captured_share_of_copy_bandwidth": captured and moved * captured / able,
    }


@attention.of_one_length()
def benchmark(
    model,
    prompt_tokens: int,
    new_tokens: int,
    repetitions: int,
    seconds: float,
    prefill_tokens: Sequence[int] = (),
    compile_too: bool = False,
    batch_sizes: Sequence[int] = (1,),
) -> BenchmarkRecord:
    """All of it for one model: prompt_tokens + new_tokens decoded, prefill at further lengths, and larger batches.

    Lengths are cut to what the model's context leaves room for.
    """
    if served.is_served(model):
        return served_benchmark.benchmark(
            model, prompt_tokens, new_tokens, repetitions, seconds, prefill_tokens, batch_sizes
        )
    prompt_tokens, lengths = fitting_lengths(model, prompt_tokens, new_tokens, prefill_tokens)
    prompt = random_prompt(model, prompt_tokens)
    meter = EnergyMeter(prompt.device)
    peak = PeakMemory(prompt.device)
    captured = fastest_captured(model, prompt, new_tokens, repetitions, seconds, meter, compile_too=compile_too)
    if "decode_tokens_per_second" in captured:  # the rate that a user can reach: the eager one stands beside it
        eager_tokens = min(new_tokens, EAGER_TOKENS)
        eager = eager_benchmark(model, prompt, eager_tokens, min(REPETITIONS, repetitions), 0.0, meter)
        first = prefill_benchmark(model, prompt, repetitions, meter)
        eager["prefill_seconds"] = first["seconds"]
        eager["joules_per_new_token"] = joules_of_more_tokens(eager, first, eager_tokens, new_tokens)
    else:
        eager_tokens = new_tokens
        eager = eager_benchmark(model, prompt, eager_tokens, repetitions, seconds, meter)
    alone = batch_of_one(prompt, eager, captured, peak.bytes())
    rate = eager["decode_tokens_per_second"]["median"]
    captured_rate = rate_of(captured) or None
    return {
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "eager_new_tokens": eager_tokens,
        **eager,
        "prefill": [prefill_benchmark(model, random_prompt(model, n), repetitions, meter) for n in lengths],
        "captured": captured,
        "batches": [
            alone if size == 1 else batch_benchmark(model, random_prompt(model, prompt_tokens, size), new_tokens, meter)
            for size in sorted(set(batch_sizes))
        ],
        "host_wait_share": host_wait_share(model, prompt, rate),
        "roofline": roofline(model, prompt, new_tokens, rate, captured_rate),
        "energy_reason": meter.reason,
    }
