"""A cell against the baseline on the same windows and prompts, and the cell as a row of a table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy

from quantharm.common.answers import endings
from quantharm.common.errors import UserError
from quantharm.common.files import read_json, read_parquet
from quantharm.common.medians import median_interval
from quantharm.common.ratios import weighted_mean_interval
from quantharm.common.records.divergence import DivergenceRecord
from quantharm.common.records.parts import Interval
from quantharm.common.records.summary import PairedAnswers, PairedPerplexity

Scalar = float | int | str | bool | None
UNTABLED = ("subtasks", "prompts_sha256", "decoding")  # keys of a task that are in summary.json alone


def paired_perplexity(cell: Path, baseline: Path) -> PairedPerplexity:
    """Change of perplexity in percent, with its 95 % interval: the log ratio is a mean over windows of both cells.

    Raises UserError where the cells scored different windows.
    """
    mine, reference = read_parquet(cell / "perplexity.parquet"), read_parquet(baseline / "perplexity.parquet")
    if mine["targets"].tolist() != reference["targets"].tolist():
        raise UserError(f"{cell} and {baseline} scored different windows; delete both perplexity.json and run again")
    difference = (mine["nll_sum_nats"] - reference["nll_sum_nats"]).to_numpy()
    targets = mine["targets"].to_numpy()

    def percent(log_ratio):
        return 100 * numpy.expm1(log_ratio)

    return {
        "perplexity_change_percent": float(percent(difference.sum() / targets.sum())),
        "perplexity_change_percent_ci95": weighted_mean_interval(difference, targets, percent),
    }


def paired_figures(cell: Path, baseline: Path, prefix: str) -> dict[str, float | Interval | None]:
    """Change of perplexity (paired over windows), mean KL and top-1 agreement of a cell; `prefix`_ before each key."""
    kl: DivergenceRecord = read_json(cell / "divergence.json")
    text = paired_perplexity(cell, baseline)
    return {
        f"{prefix}_perplexity_change_percent": text["perplexity_change_percent"],
        f"{prefix}_perplexity_change_percent_ci95": text["perplexity_change_percent_ci95"],
        f"{prefix}_kl_nats_mean": kl["kl_nats"]["mean"],
        f"{prefix}_kl_nats_ci95": kl["kl_nats"]["ci95"],
        f"{prefix}_top1_agreement": kl["top1_agreement"],
    }


def first_difference(mine: list[int], reference: list[int]) -> int | None:
    """Index of the first token that differs; None when the answers are equal."""
    for i, (a, b) in enumerate(zip(mine, reference, strict=False)):
        if a != b:
            return i
    return None if len(mine) == len(reference) else min(len(mine), len(reference))


def paired_answers(cell: Path, baseline: Path) -> PairedAnswers:
    """Flips against the baseline, the first tokens that differ, and how answers end."""
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


def flat(row: Mapping[str, Any]) -> dict[str, Scalar]:
    """A row of records for Parquet and CSV: intervals as _low and _high, a column for each category, task and batch."""
    columns: dict[str, Scalar] = {}
    for key, value in row.items():
        if key.endswith("_ci95"):
            low, high = value or (None, None)
            columns |= {f"{key}_low": low, f"{key}_high": high}
        elif key in ("tasks", "tasks_overall"):
            by_task = {"overall": value} if key == "tasks_overall" else value
            for task, figures in (by_task or {}).items():
                tabled = {name: v for name, v in (figures or {}).items() if name not in UNTABLED}
                columns |= {f"task/{task}/{name}": v for name, v in flat(tabled).items()}
        elif key.endswith("_by_category"):
            columns |= {f"{key.removesuffix('_by_category')}/{category}": v for category, v in value.items()}
        elif key.endswith("_by_batch"):
            columns |= {f"{key.removesuffix('_by_batch')}/batch {size}": v for size, v in value.items()}
        elif key.endswith("_by_depth"):
            for bin in value or []:
                depth = f"{key.removesuffix('_by_depth')}/tokens {bin['from_tokens']} to {bin['to_tokens'] - 1}"
                columns[depth] = bin["kl_nats_mean"]
        elif isinstance(value, list):
            columns[key] = ", ".join(value)
        else:
            columns[key] = value
    return columns
