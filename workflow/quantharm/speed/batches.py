"""Prefill and decode of several sequences at once: the gain from reading the weights once for all of them.

Weight-only quantization shrinks the bytes that a step reads; the larger the batch, the more of a step is arithmetic
instead. Rates count the tokens of all sequences. Decoding is timed captured where a graph of this batch passes its
check, else eagerly; the record says which. `peak_memory_bytes` includes the weights.
"""

import torch

from quantharm.common.errors import first_line, host_is_full
from quantharm.common.records.generation import BatchFigures, BatchRecord, Captured, Eager
from quantharm.models.devices import free_memory
from quantharm.speed.device_meters import EnergyMeter, PeakMemory
from quantharm.speed.timings import captured_benchmark, eager_benchmark, prefill_benchmark

MOST_TOKENS = 32  # decoded of each sequence in a repetition
REPETITIONS = 6  # of a batch: the fewest whose range is a 95 % interval of their median
CHECKED_TOKENS = 9  # of each sequence, decoded to check the captured step of a batch
NOT_MEASURED: BatchFigures = {
    "decoding": None,
    "decoding_reason": None,
    "prefill_seconds": None,
    "decode_tokens_per_second": None,
    "peak_memory_bytes": None,
}


def batch_of_one(prompt: torch.Tensor, eager: Eager, captured: Captured, peak_memory_bytes: int | None) -> BatchRecord:
    """The record of batch 1, from the timings of the single prompt [1, T]."""
    reason = captured.get("reason")
    return {
        "batch_size": 1,
        "prompt_tokens": prompt.shape[1],
        "decoding": "eager" if reason else "captured",
        "decoding_reason": reason,
        "prefill_seconds": eager["prefill_seconds"],
        "decode_tokens_per_second": eager["decode_tokens_per_second"]
        if reason
        else captured["decode_tokens_per_second"],
        "peak_memory_bytes": peak_memory_bytes,
        "reason": None,
    }


def batch_benchmark(model, prompts: torch.Tensor, new_tokens: int, meter: EnergyMeter) -> BatchRecord:
    """Rates and peak memory of prompts [batch, T] at once; nulls with the `reason` where memory does not suffice."""
    reason, figures = None, NOT_MEASURED
    try:
        figures = time_batch(model, prompts, min(new_tokens, MOST_TOKENS), meter)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = f"out of memory ({first_line(error).split('. ')[0]})"
    if reason:
        free_memory(prompts.device.type)  # here, where the exception no longer holds it
    return {"batch_size": len(prompts), "prompt_tokens": prompts.shape[1], **figures, "reason": reason}


def time_batch(model, prompts: torch.Tensor, new_tokens: int, meter: EnergyMeter) -> BatchFigures:
    """Figures of prompts [batch, T]; raises PyTorch's error where memory does not suffice."""
    peak = PeakMemory(prompts.device)
    captured = captured_benchmark(model, prompts, new_tokens, REPETITIONS, 0.0, meter, checked_tokens=CHECKED_TOKENS)
    reason = captured.get("reason")
    if reason:
        free_memory(prompts.device.type)
        peak = PeakMemory(prompts.device)
        eager = eager_benchmark(model, prompts, new_tokens, REPETITIONS, 0.0, meter)
        prefill_seconds, rate = eager["prefill_seconds"], eager["decode_tokens_per_second"]
    else:
        prefill_seconds = prefill_benchmark(model, prompts, REPETITIONS, meter)["seconds"]
        rate = captured["decode_tokens_per_second"]
    return {
        "decoding": "eager" if reason else "captured",
        "decoding_reason": reason,
        "prefill_seconds": prefill_seconds,
        "decode_tokens_per_second": rate,
        "peak_memory_bytes": peak.bytes(),
    }


def is_out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch or the host had no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or host_is_full(error)
