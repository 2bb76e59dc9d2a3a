"""Examples of the harm: the worst positions, and responses of baseline and method where they first differ."""

from pathlib import Path
from typing import Any

from quantharm.common.files import read_parquet
from quantharm.common.paired import first_difference
from quantharm.common.prompts import read_prompts
from quantharm.common.records.divergence import Ranked, WorstPositionInWords
from quantharm.reporting.results import Cell, Results
from quantharm.reporting.text import one_line, shortened, visible

PROMPT_CHARACTERS = 400
CONTEXT_CHARACTERS = 220


def token(text: str) -> str:
    """A token as one visible word: its blanks would not be seen."""
    return one_line(text).replace(" ", "␣") or "∅"


def worst_positions(cell: Cell) -> list[dict[str, Any]] | None:
    """divergence.json's worst positions with their texts made visible, and both models' first choices as a list of
    {token, probability, is_target}, the most probable first. None where the results were made before this was recorded.
    """
    records = cell.divergence.get("worst_positions")
    return None if records is None else [shown(record) for record in records]


def shown(record: WorstPositionInWords) -> dict[str, Any]:
    context = one_line(record["context"])
    cut = "… " if record["context_is_cut"] or len(context) > CONTEXT_CHARACTERS else ""

    def choices(top: Ranked) -> list[dict[str, Any]]:
        return [
            {"token": token(record["token_texts"][str(i)]), "probability": p, "is_target": i == record["target_id"]}
            for i, p in top
        ]

    return {
        **record,
        "context": cut + context[-CONTEXT_CHARACTERS:],
        "target": token(record["target"]),
        "baseline": choices(record["baseline_top5"]),
        "method": choices(record["method_top5"]),
    }


def prompt_texts(path: Path | None) -> dict[str, str]:
    """prompt id → text; empty where the suite is not at hand."""
    return {p["id"]: p["prompt"] for p in read_prompts(path)} if path else {}


def parting(first: str, second: str) -> tuple[str, str, str]:
    """(what two texts share at their start, the rest of the first, the rest of the second), parted between words."""
    same = next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
    shared = first[:same]
    if same < min(len(first), len(second)):
        shared = shared[: max(shared.rfind(" "), shared.rfind("\n")) + 1]
    return shared, first[len(shared) :], second[len(shared) :]


def responses(cell: Cell, results: Results, prompts: dict[str, str]) -> list[dict[str, Any]]:
    """Two answers to one prompt of each category, cut where they part: the prompt whose answers part earliest.

    token: index of the first that differs.
    """
    columns = ["prompt_id", "category", "token_ids", "text"]
    mine, baseline = (read_parquet(c.folder / "generation.parquet", columns) for c in (cell, results.baseline))
    earliest: dict[str, dict[str, Any]] = {}
    for row in mine.merge(baseline, on="prompt_id", suffixes=("", "_baseline")).itertuples():
        index = first_difference(list(row.token_ids), list(row.token_ids_baseline))
        if index is None or (row.category in earliest and earliest[row.category]["token"] <= index):
            continue
        shared, baseline_rest, method_rest = parting(visible(row.text_baseline), visible(row.text))
        earliest[row.category] = {
            "prompt_id": row.prompt_id,
            "category": row.category,
            "prompt": shortened(visible(prompts.get(row.prompt_id, "")), PROMPT_CHARACTERS),
            "token": index,
            "shared": shared.lstrip("\n"),  # blank lines at the start say nothing
            "baseline_rest": baseline_rest,
            "method_rest": method_rest,
        }
    return [earliest[category] for category in results.categories if category in earliest]
