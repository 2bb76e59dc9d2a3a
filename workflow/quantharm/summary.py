"""All cells of one model (or of several models) as one table: a row a cell, every figure of its result files.

Differences from the baseline are paired: ΔPPL over the same windows, flips over the same prompts. Writes
summary.parquet, summary.csv and summary.json; given summaries instead of cells, joins them. Cells that could not be
finished are rows, too: their column `left_out` says why, and their figures are missing.
"""

import json
from pathlib import Path

import numpy
import pandas

from quantharm.common.accuracy import corrected
from quantharm.common.answers import endings
from quantharm.common.constants import BASELINE
from quantharm.common.errors import UserError
from quantharm.common.files import read_json, read_parquet, replacing, write_json, write_parquet
from quantharm.common.left_out import LeftOut, name, sentence
from quantharm.common.paired import first_difference, flat, paired_perplexity
from quantharm.common.provenance import with_nulls
from quantharm.common.records.checks import ChecksRecord
from quantharm.common.records.divergence import DivergenceRecord
from quantharm.common.records.generation import BatchRecord, GenerationRecord
from quantharm.common.records.integrity import IntegrityRecord
from quantharm.common.records.perplexity import PerplexityRecord
from quantharm.common.records.quantization import QuantizationRecord
from quantharm.common.records.summary import (
    BatchFigures,
    IntegrityFigures,
    PairedAnswers,
    SummaryRow,
    SummaryTasks,
    TreatmentFigures,
)
from quantharm.common.records.tasks import TasksRecord
from quantharm.common.stage import run_stage, stage_parser
from quantharm.common.statistics import median_interval

NULLABLE = {"i": "Int64", "b": "boolean"}  # pandas' types that hold missing values, by the kind of those that do not


def paired_answers(cell: Path, baseline: Path) -> PairedAnswers:
    """Answers that flipped against the baseline, where responses first differ, and how they end."""
    columns = ["prompt_id", "token_ids", "correct", "stop_reason"]
    mine = read_parquet(cell / "generation.parquet", columns).set_index("prompt_id")
    reference = read_parquet(baseline / "generation.parquet", columns).set_index("prompt_id")
    both = mine.merge(reference, left_index=True, right_index=True, suffixes=("", "_baseline"))
    judged = both.dropna(subset=["correct", "correct_baseline"])
    now, before = judged["correct"].astype(bool), judged["correct_baseline"].astype(bool)
    positions = [
        first_difference(list(a), list(b)) for a, b in zip(both["token_ids"], both["token_ids_baseline"], strict=True)
    ]
    differing = [p for p in positions if p is not None]
    return {
        "flips_right_to_wrong": int((before & ~now).sum()),
        "flips_wrong_to_right": int((~before & now).sum()),
        "identical_responses": len(positions) - len(differing),
        "first_difference_median": float(numpy.median(differing)) if differing else None,
        "first_difference_ci95": median_interval(differing),
        **endings(
            both[["token_ids", "stop_reason"]].to_dict("records"),
            both[["token_ids_baseline", "stop_reason_baseline"]]
            .set_axis(["token_ids", "stop_reason"], axis=1)
            .to_dict("records"),
        ),
    }


NO_INTEGRITY: IntegrityFigures = {
    "integrity_verified": None,
    "integrity_files_verified": None,
    "integrity_scan": None,
    "integrity_if_dequantized": None,
    "integrity_if_dequantized_seen_as": None,
    "integrity_behaves_as_the_original": None,
    "integrity_explanation": None,
}


def integrity_figures(record: IntegrityRecord | None) -> IntegrityFigures:
    """What integrity.json found of a cell; keys of what does not apply to it, or was not measured, hold None."""
    if record is None:
        return NO_INTEGRITY
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


NO_TASKS = SummaryTasks(tasks=None, tasks_overall=None)


def task_figures(cells: list[Path]) -> dict[str, SummaryTasks]:
    """{method: {tasks: {task: figures}, tasks_overall: figures}}, with p-values corrected for methods × tasks.

    The figures over all tasks are a family of their own, of as many comparisons as methods.
    """
    records: dict[str, TasksRecord] = {cell.name: read_json(cell / "tasks.json") for cell in cells}
    others = {method: record for method, record in records.items() if method != BASELINE}
    single = corrected(
        {(m, task): figures for m, record in others.items() for task, figures in record["tasks"].items()}
    )
    overall = corrected({m: record["overall"] for m, record in others.items()})
    return {
        method: SummaryTasks(
            tasks={task: single.get((method, task), figures) for task, figures in record["tasks"].items()},
            tasks_overall=overall.get(method, record["overall"]),
        )
        for method, record in records.items()
    }


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
        "compression": reference["weight_bytes"] / quantization["weight_bytes"],
        "saved_bytes": reference["weight_bytes"] - quantization["weight_bytes"],
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
        "memory_allocated_bytes": generation["memory"].get("allocated_bytes"),
        "memory_reserved_bytes": generation["memory"].get("reserved_bytes"),
        "memory_peak_bytes": generation["memory"]["peak_bytes"],
        **treatment_figures(quantization, checks),
        "checks_failed": checks["failed"],
        **integrity_figures(integrity),
        **tasks,
        "git_commit": perplexity["provenance"]["git_commit"],
        "finished": checks["provenance"]["finished"],
    }


def table_of(rows: list[SummaryRow], left_out: list[LeftOut]) -> pandas.DataFrame:
    """A row a cell; cells that are left out as well, by name, with the reason in the column `left_out`."""
    absent = [entry for entry in left_out if not entry["compared"]]
    names = pandas.DataFrame(
        {
            "model": [entry["model"] for entry in absent],
            "method": [entry["method"] for entry in absent],
            "left_out": [sentence(entry) for entry in absent],
        }
    )
    if not rows:
        return names
    table = pandas.DataFrame([flat(row) for row in rows])
    reasons = {(entry["model"], entry["method"]): sentence(entry) for entry in left_out}
    table["left_out"] = [reasons.get(key) for key in zip(table["model"], table["method"], strict=True)]
    if not absent:
        return table
    whole = {column: NULLABLE[dtype.kind] for column, dtype in table.dtypes.items() if dtype.kind in NULLABLE}
    table = table.astype(whole)
    return pandas.concat([table, names.reindex(columns=table.columns).astype(table.dtypes)], ignore_index=True)


def short_table(table: pandas.DataFrame) -> str:
    """What a terminal shows at the end of a run of the cells that were compared."""
    if not len(table):
        return "No cell could be compared."
    shown = pandas.DataFrame(
        {
            "model": table["model"],
            "method": table["method"],
            "disk, MB": (table["checkpoint_bytes"] / 1e6).map("{:.1f}".format),
            "loaded, MB": (table["weight_bytes"] / 1e6).map("{:.1f}".format),
            "bits": table["bits_per_weight"].map(lambda bits: "" if pandas.isna(bits) else f"{bits:.2f}"),
            "perplexity": table["perplexity"].map("{:.3f}".format),
            "change, %": table["perplexity_change_percent"].map("{:+.2f}".format),
            "KL, nats": table["kl_nats_mean"].map("{:.2g}".format),
            "top-1": table["top1_agreement"].map("{:.1%}".format),
            "decode, tokens/s": table["decode_tokens_per_second_median"].map("{:.1f}".format),
            "checks": table["checks_failed"].map(lambda names: f"FAILED: {names}" if names else "passed"),
            "integrity": table["integrity_verified"].map({True: "no finding", False: "FINDING"}).fillna("missing"),
        }
    )
    text = shown.to_string(index=False)
    synthetic = list(dict.fromkeys(table.loc[table["synthetic"], "model"]))
    if synthetic:
        text += f"\nSynthetic weights: the quality figures of {', '.join(synthetic)} are of random numbers."
    return text


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--cells", type=Path, nargs="*", help="folders of one model's cells, the baseline's first")
    parser.add_argument("--tasks", action="store_true", help="the cells answered tasks")
    parser.add_argument("--summaries", type=Path, nargs="*", help="or summary.json files of several models")
    parser.add_argument("--left-out", type=json.loads, default=[], help="JSON: the cells that could not be finished")
    parser.add_argument("--json", type=Path, help="summary.json")
    parser.add_argument("--parquet", type=Path, required=True, help="summary.parquet")
    parser.add_argument("--csv", type=Path, required=True, help="summary.csv")
    arguments = parser.parse_args()
    if arguments.cells is None and arguments.summaries is None:
        parser.error("name --cells or --summaries")
    left_out: list[LeftOut] = arguments.left_out
    if arguments.summaries is not None:
        summaries = [read_json(path) for path in arguments.summaries]
        rows = [row for summary in summaries for row in summary["cells"]]
        left_out = [entry for summary in summaries for entry in summary.get("left_out", [])] + left_out
    else:
        baselines = [cell for cell in arguments.cells if cell.name == BASELINE]
        if not baselines and arguments.cells:
            raise UserError(f"no cell `{BASELINE}` is among {', '.join(map(str, arguments.cells))}; add the method")
        lacking = {entry["method"] for entry in left_out if entry["compared"]}
        answered = task_figures(arguments.cells) if arguments.tasks else {}
        rows = [
            summarise_cell(cell, baselines[0], cell.name not in lacking, answered.get(cell.name, NO_TASKS))
            for cell in arguments.cells
        ]
    table = table_of(rows, left_out)
    write_parquet(arguments.parquet, table)
    with replacing(arguments.csv) as path:
        table.to_csv(path, index=False)
    if arguments.json:
        write_json(arguments.json, {"cells": rows, "left_out": left_out})
    print(short_table(table.head(len(rows))))
    for entry in left_out:
        print(f"Left out: {name(entry)}: {sentence(entry)} ({entry['log']})")


if __name__ == "__main__":
    run_stage(main)
