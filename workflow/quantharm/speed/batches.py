"""Prefill and decode of several sequences at once: what reading the weights once for all of them gains.

Weight-only quantization shrinks what is read once a step; the larger the batch, the more of a step is arithmetic
instead. Rates count the tokens of all sequences. Decoding is timed captured where a graph of this batch passes its
check, else eagerly; the record says which. `peak_memory_bytes` holds the weights as well.
"""

from typing import Any

import torch

from quantharm.common.errors import first_line
from quantharm.speed.device_meters import EnergyMeter, PeakMemory
from quantharm.speed.timings import captured_benchmark, eager_benchmark, prefill_benchmark

MOST_TOKENS = 32  # decoded by each sequence of a batch in a repetition
REPETITIONS = 6  # of a batch: the fewest whose range is a 95 % interval of their median
CHECKED_TOKENS = 9
MEASURED = ("decoding", "decoding_reason", "prefill_seconds", "decode_tokens_per_second", "peak_memory_bytes")


def batch_of_one(prompt: torch.Tensor, eager: dict, captured: dict, peak_memory_bytes: int | None) -> dict[str, Any]:
    """The record of batch 1, from timings that are there already."""
    reason = captured.get("reason")
    return {
        "batch_size": 1,
        "prompt_tokens": prompt.shape[1],
        "decoding": "eager" if reason else "captured",
        "decoding_reason": reason,
        "prefill_seconds": eager["prefill_seconds"],
        "decode_tokens_per_second": (eager if reason else captured)["decode_tokens_per_second"],
        "peak_memory_bytes": peak_memory_bytes,
        "reason": None,
    }


def batch_benchmark(model, prompts: torch.Tensor, new_tokens: int, meter: EnergyMeter) -> dict[str, Any]:
    """Rates and peak memory of prompts [batch, T] at once; nulls with the `reason` where memory does not suffice."""
    record: dict[str, Any] = {"batch_size": len(prompts), "prompt_tokens": prompts.shape[1]}
    try:
        return record | timed(model, prompts, min(new_tokens, MOST_TOKENS), meter) | {"reason": None}
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = f"out of memory ({first_line(error).split('. ')[0]})"
    give_back(prompts.device)  # here, where the exception no longer holds what was allocated
    return record | dict.fromkeys(MEASURED) | {"reason": reason}


def timed(model, prompts: torch.Tensor, new_tokens: int, meter: EnergyMeter) -> dict[str, Any]:
    """MEASURED of one batch."""
    peak = PeakMemory(prompts.device)
    timings = captured_benchmark(model, prompts, new_tokens, REPETITIONS, 0.0, meter, checked_tokens=CHECKED_TOKENS)
    reason = timings.get("reason")
    if reason:
        give_back(prompts.device)
        peak = PeakMemory(prompts.device)
        timings = eager_benchmark(model, prompts, new_tokens, REPETITIONS, 0.0, meter)
    else:
        timings["prefill_seconds"] = prefill_benchmark(model, prompts, REPETITIONS, meter)["seconds"]
    return {
        "decoding": "eager" if reason else "captured",
        "decoding_reason": reason,
        "prefill_seconds": timings["prefill_seconds"],
        "decode_tokens_per_second": timings["decode_tokens_per_second"],
        "peak_memory_bytes": peak.bytes(),
    }


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def give_back(device: torch.device) -> None:
    """What a failed attempt held; else the next one would be fitted into the rest of a GPU."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
