"""The text of a card: table, checks, and the limits of the measurement. Markdown, everything escaped."""

from typing import Any, TypedDict

from quantharm.common.constants import TEXT_CATEGORY
from quantharm.common.records.checks import ChecksRecord
from quantharm.common.records.generation import GenerationRecord
from quantharm.common.records.perplexity import PerplexityRecord
from quantharm.common.records.quantization import QuantizationRecord
from quantharm.common.records.summary import SummaryRow
from quantharm.common.records.tasks import OneTask
from quantharm.reporting.format import (
    MISSING,
    count,
    fixed,
    interval,
    listing,
    mean_kl,
    number,
    percent,
    share,
    share_to_a_tenth,
    size,
)
from quantharm.reporting.text import markdown

Line = tuple[str, str, str, str]  # figure, baseline, method, change


class CellRecords(TypedDict):
    """Records of a cell that a card needs beside its row of the summary."""

    quantization: QuantizationRecord
    generation: GenerationRecord
    perplexity: PerplexityRecord
    checks: ChecksRecord


def table(row: SummaryRow, reference: SummaryRow, text: str) -> list[Line]:
    """The rows of the table; row, reference: of the cell and of its baseline in summary.json."""
    by_category = {c: kl for c, kl in row["kl_nats_by_category"].items() if c != TEXT_CATEGORY}
    worst = max(by_category, key=lambda category: by_category[category])
    lines: list[Line] = [
        (
            f"Perplexity of {text} ({row['perplexity_protocol']})",
            fixed(reference["perplexity"], 3),
            fixed(row["perplexity"], 3),
            f"{percent(row['perplexity_change_percent'])} "
            f"{interval(row['perplexity_change_percent_ci95'], percent)}".strip(),
        ),
        (
            "Mean KL divergence from the unquantized model, nats",
            f"{number(reference['kl_nats_mean'])} (noise)",
            f"{mean_kl(row)} {interval(row['kl_nats_ci95'])}".strip(),
            f"largest in {worst}: {number(by_category[worst])}",
        ),
        ("Same first choice of the next token", MISSING, share(row["top1_agreement"], 1), MISSING),
    ]
    lines += [accuracy(name, task) for name, task in (row.get("tasks") or {}).items()]
    if row["weight_bytes"] is not None:  # else they are behind an address
        change = f"{fixed(row['compression'], 2)}× smaller"
        lines.append(("Weights loaded", size(reference["weight_bytes"]), size(row["weight_bytes"]), change))
    return [*lines, speed(row, reference)]


def accuracy(name: str, task: OneTask) -> Line:
    """The row of one task."""
    recovery = f"{share(task['recovery'], 1)} {interval(task['recovery_ci95'], share_to_a_tenth)}".strip()
    return (
        f"Accuracy in {name}, {count(task['items'], 'item')}",
        share(task["baseline_accuracy"], 1),
        f"{share(task['accuracy'], 1)} {interval(task['accuracy_ci95'], share_to_a_tenth)}".strip(),
        f"recovery {recovery}",
    )


def speed(row: SummaryRow, reference: SummaryRow) -> Line:
    """As a CUDA graph where both were decoded so, else step by step."""
    words = "Decoding as a CUDA graph, tokens/s"
    mine, its = (r["captured_decode_tokens_per_second_median"] for r in (row, reference))
    if mine is None or its is None:
        words = "Decoding, tokens/s"
        mine, its = (r["decode_tokens_per_second_median"] for r in (row, reference))
    return words, fixed(its, 1), fixed(mine, 1), f"{fixed(mine / its, 2)}× as fast"


def limits(row: SummaryRow, generation: GenerationRecord, perplexity: PerplexityRecord, tasks: list[str]) -> list[str]:
    """The scope of the figures, and what they do not show."""
    per_category = [v["prompts"] for v in generation["by_category"].values()]
    few = f"{min(per_category)} to {max(per_category)}" if min(per_category) != max(per_category) else min(per_category)
    ran = generation["provenance"]
    waited = generation["benchmark"].get("processor_wait_share") or 0.0
    busy = f" Other programs had its processors {share(waited)} of the time." if waited >= 0.01 else ""
    return [
        f"{count(row['prompts'], 'prompt')} of {count(len(per_category), 'category', 'categories')}, {few} each, "
        f"answered greedily with at most {row['max_new_tokens']} tokens, one at a time. Sampling, batches, longer "
        "answers and other languages than the prompts' were not measured.",
        f"One text, {count(perplexity['windows'], 'window')} and {perplexity['tokens_scored']:,} tokens.",
        f"Tasks: {listing(tasks)}." if tasks else "No task was run: nothing here says how many answers stay right.",
        f"Speed is of {ran['device']}, {row['compute_dtype'] or row['dtype']}, batch 1, "
        f"{row['benchmark_prompt_tokens']} tokens of prompt; other devices and engines may order methods otherwise."
        f"{busy}",
        "Intervals are of 95 %, over prompts or windows; they do not count other texts or other calibration samples.",
    ]


def section(row: SummaryRow, reference: SummaryRow, records: CellRecords, text: str, protocol: str, badge: str) -> str:
    """row, reference: as table(); badge: the file beside the card."""
    quantization, checks = records["quantization"], records["checks"]["checks"]
    idle = quantization.get("settings_without_effect", [])
    given = [(key, value) for key, value in quantization["settings"].items() if key not in idle and not is_long(value)]
    settings = ", ".join(f"{key} {value}" for key, value in given)
    where = row["source"] + (f" at {row['revision']}" if row["revision"] else "")
    passed = sum(check["status"] == "pass" for check in checks)
    ran = [check for check in checks if check["status"] != "skipped"]
    parts = [
        f"## What quantization changed\n\n![quantharm]({badge})",
        f"{markdown(where)}, quantized by {markdown(quantization['quantizer'])}"
        + (f" ({markdown(settings)})" if settings else "")
        + f", compared with the unquantized model by quantharm; protocol `{protocol[:12]}`.",
    ]
    if row["checks_failed"]:
        parts.append(f"**It failed {markdown(listing(row['checks_failed']))}: do not believe these figures.**")
    if row["synthetic"]:
        parts.append("**Random weights: figures of quality mean nothing.**")
    lines = [("Figure [95 % interval]", "unquantized", row["method"], "change"), (":--", "--:", "--:", "--:")]
    lines += table(row, reference, text)
    parts.append(
        "\n".join(f"| {' | '.join(w if i == 1 else markdown(w) for w in line)} |" for i, line in enumerate(lines))
    )
    files = {True: "no finding", False: "a FINDING", None: "not measured"}[row["integrity_verified"]]
    parts.append(f"Checks: {passed} of {len(ran)} passed. Integrity of the checkpoint: {files}.")
    parts.append("### Limits of what was measured")
    told = limits(row, records["generation"], records["perplexity"], list(row.get("tasks") or {}))
    parts.append("\n".join(f"- {markdown(words)}" for words in told))
    parts.append(f"Protocol sha256: `{protocol}`; measured {markdown(row['finished'])}, commit `{row['git_commit']}`.")
    return "\n\n".join(parts) + "\n"


def is_long(value: Any) -> bool:
    """Whether a setting takes more room than a sentence has."""
    return isinstance(value, dict | list) or len(str(value)) > 40
