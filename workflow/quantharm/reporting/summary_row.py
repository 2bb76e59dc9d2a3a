"""A row of the summary: every figure of a cell's result files.

Differences from the baseline are paired: ΔPPL over the same windows, flips over the same prompts.
"""

from pathlib import Path
from typing import cast

from quantharm.common.files import read_json
from quantharm.common.paired import paired_answers, paired_perplexity
from quantharm.common.provenance import with_nulls
from quantharm.common.records.checks import ChecksRecord
from quantharm.common.records.divergence import DivergenceRecord
from quantharm.common.records.generation import BatchRecord, BenchmarkRecord, GenerationRecord
from quantharm.common.records.integrity import IntegrityRecord
from quantharm.common.records.perplexity import PerplexityRecord
from quantharm.common.records.quantization import QuantizationRecord
from quantharm.common.records.summary import (
    BatchFigures,
    IntegrityFigures,
    SavedFigures,
    SummaryRow,
    SummaryTasks,
    TreatmentFigures,
)
from quantharm.reporting.summary_tasks import NO_TASKS


def integrity_figures(record: IntegrityRecord | None) -> IntegrityFigures:
    """Findings of integrity.json on a cell; keys that do not apply to it, or were not measured, hold None."""
    if record is None:
        return cast(IntegrityFigures, dict.fromkeys(IntegrityFigures.__annotations__))
    if_dequantized = record["if_dequantized"]
    files = record["signed_manifest"] or record["manifest"]
    return {
        "integrity_verified": record["verified"],
        "integrity_files_verified": files["verified"],
        "integrity_scan": record["scan"]["verdict"],
        "integrity_if_dequantized": if_dequantized and if_dequantized["verdict"],
        # no method where nothing was there to scan
        "integrity_if_dequantized_seen_as": if_dequantized and if_dequantized.get("method"),
        "integrity_behaves_as_the_original": record["behaviour"]["same_as_original"],
        "integrity_explanation": record["explanation"],
    }


def treatment_figures(quantization: QuantizationRecord, checks: ChecksRecord) -> TreatmentFigures:
    """Weight noise and calibration samples of a cell, None where it has none."""
    noise, samples = quantization.get("noise"), checks.get("calibration")
    return {
        "noise_sigma": noise and noise["sigma"],
        "noise_relative_to": noise and noise["relative_to"],
        "noise_codes_changed": noise and noise["codes_changed"],
        "calibration_samples": samples and samples["samples_reached"],
        "calibration_tokens": samples and samples["tokens_reached"],
        "calibration_loss_ratio": samples and samples["nll_mean_nats"] / samples["text_nll_mean_nats"],
    }


def batch_figures(batches: list[BatchRecord]) -> BatchFigures:
    """Medians and peaks by batch size, None where memory did not suffice."""
    rates = {str(batch["batch_size"]): batch["decode_tokens_per_second"] for batch in batches}
    return {
        "decode_tokens_per_second_by_batch": {size: rate and rate["median"] for size, rate in rates.items()},
        "peak_memory_bytes_by_batch": {str(batch["batch_size"]): batch["peak_memory_bytes"] for batch in batches},
    }


def saved_figures(mine: int | None, reference: int | None) -> SavedFigures:
    """How much smaller a cell's weights are than the baseline's; None where they are not seen."""
    if mine is None or reference is None:
        return {"compression": None, "saved_bytes": None}
    return {"compression": reference / mine, "saved_bytes": reference - mine}


def cache_bytes_per_token(speed: BenchmarkRecord) -> float | None:
    """None behind an address, and of an earlier version."""
    return speed["roofline"].get("kv_cache_bytes_per_token") if speed["roofline"] else None


def summarise_cell(
    cell: Path, baseline: Path, with_integrity: bool = True, tasks: SummaryTasks = NO_TASKS
) -> SummaryRow:
    """One row: identity, sizes, perplexity, divergence, generation, memory, checks, integrity."""
    quantization: QuantizationRecord = read_json(cell / "quantization.json")
    perplexity: PerplexityRecord = read_json(cell / "perplexity.json")
    divergence: DivergenceRecord = read_json(cell / "divergence.json")
    generation: GenerationRecord = read_json(cell / "generation.json")
    checks: ChecksRecord = read_json(cell / "checks.json")
    integrity: IntegrityRecord | None = read_json(cell / "integrity.json") if with_integrity else None
    reference: QuantizationRecord = read_json(baseline / "quantization.json")
    reference_speed: GenerationRecord = read_json(baseline / "generation.json")
    speed, baseline_speed = generation["benchmark"], reference_speed["benchmark"]
    memory, bound = generation["memory"], divergence.get("kl_lower_bound")
    captured = speed.get("captured", {}).get("decode_tokens_per_second")  # None where nothing could be captured
    return {
        "model": quantization["model"],
        "method": quantization["method"],
        "synthetic": quantization["synthetic"],
        "quantizer": quantization["quantizer"],
        "source": quantization["source"]["source"],
        "revision": quantization["source"]["revision"],
        "dtype": quantization["dtype"],
        "device": perplexity["provenance"]["device"],
        **with_nulls(perplexity["provenance"]),
        "parameters": quantization["parameters"],
        "checkpoint_bytes": quantization["checkpoint_bytes"],
        "weight_bytes": quantization["weight_bytes"],
        "bits_per_weight": quantization["bits_per_weight"],
        "bits_per_weight_formula": quantization["bits_per_weight_formula"],
        "quantized_modules": len(quantization["quantized_modules"]),
        **saved_figures(quantization["weight_bytes"], reference["weight_bytes"]),
        "quantize_seconds": quantization["seconds"],
        "perplexity_protocol": perplexity["protocol"],
        "text_tokens_sha256": perplexity["tokens_sha256"],
        "perplexity_tokens_scored": perplexity["tokens_scored"],
        "perplexity": perplexity["perplexity"],
        "perplexity_ci95": perplexity["perplexity_ci95"],
        **paired_perplexity(cell, baseline),
        "bits_per_byte": perplexity["bits_per_byte"],
        "trace_sha256": divergence["trace_sha256"],
        "kl_nats_mean": divergence["kl_nats"]["mean"],
        "kl_nats_ci95": divergence["kl_nats"]["ci95"],
        "kl_nats_median": divergence["kl_nats"]["median"],
        "kl_nats_p90": divergence["kl_nats"]["p90"],
        "kl_nats_p99": divergence["kl_nats"]["p99"],
        "kl_nats_p99_9": divergence["kl_nats"]["p99_9"],
        "kl_nats_max": divergence["kl_nats"]["max"],
        "kl_is_lower_bound": divergence.get("kl_is_lower_bound", False),
        "kl_lower_bound_top_tokens": bound and bound["top_tokens"],
        "kl_lower_bound_nats_mean": bound and bound["kl_nats_mean"],
        "reverse_kl_nats_mean": divergence["reverse_kl_nats_mean"],
        "js_nats_mean": divergence["js_nats_mean"],
        "top1_agreement": divergence["top1_agreement"],
        "delta_p_rms": divergence["delta_p"]["rms"],
        "text_kl_nats_mean": divergence["text"] and divergence["text"]["kl_nats_mean"],
        "text_log_perplexity_ratio": divergence["text"] and divergence["text"]["log_perplexity_ratio"],
        "kl_nats_by_depth": divergence.get("by_depth"),
        "kl_nats_by_category": {c: v["kl_nats_mean"] for c, v in divergence["by_category"].items()},
        "prompt_tokens_sha256": generation.get("prompt_tokens_sha256"),
        "max_new_tokens": generation["max_new_tokens"],
        "prompts": generation["prompts"],
        "succeeded": generation["succeeded"],
        "judged": generation["judged"],
        "correct": generation["correct"],
        **paired_answers(cell, baseline),
        "seconds_mean": generation["seconds_mean"],
        "seconds_change_percent": 100 * (generation["seconds_mean"] / reference_speed["seconds_mean"] - 1),
        "time_to_first_token_seconds_mean": generation["time_to_first_token_seconds_mean"],
        "new_tokens_mean": generation["new_tokens_mean"],
        "tokens_per_second": generation["tokens_per_second"],
        "decoding": generation["decoding"],
        "seconds_mean_by_category": {c: v["seconds_mean"] for c, v in generation["by_category"].items()},
        "new_tokens_mean_by_category": {c: v["new_tokens_mean"] for c, v in generation["by_category"].items()},
        "succeeded_by_category": {c: v["succeeded"] / v["prompts"] for c, v in generation["by_category"].items()},
        "kv_cache_bytes_per_token": cache_bytes_per_token(speed),
        "benchmark_prompt_tokens": speed["prompt_tokens"],
        "benchmark_new_tokens": speed["new_tokens"],
        "prefill_seconds_median": speed["prefill_seconds"]["median"],
        "prefill_seconds_ci95": speed["prefill_seconds"]["ci95"],
        "decode_tokens_per_second_median": speed["decode_tokens_per_second"]["median"],
        "decode_tokens_per_second_ci95": speed["decode_tokens_per_second"]["ci95"],
        "captured_decode_tokens_per_second_median": captured and captured["median"],
        "captured_decode_tokens_per_second_ci95": captured and captured["ci95"],
        **batch_figures(speed["batches"]),
        "decode_speed_relative": speed["decode_tokens_per_second"]["median"]
        / baseline_speed["decode_tokens_per_second"]["median"],
        "memory_allocated_bytes": memory and memory.get("allocated_bytes"),
        "memory_reserved_bytes": memory and memory.get("reserved_bytes"),
        "memory_peak_bytes": memory and memory["peak_bytes"],
        **treatment_figures(quantization, checks),
        "checks_failed": checks["failed"],
        **integrity_figures(integrity),
        **tasks,
        "git_commit": perplexity["provenance"]["git_commit"],
        "finished": checks["provenance"]["finished"],
    }
