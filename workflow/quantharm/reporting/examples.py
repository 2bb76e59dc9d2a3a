"""Examples of the harm: the worst positions, and responses of baseline and method where they first differ."""

from pathlib import Path
from typing import TypedDict

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


class Choice(TypedDict):
    """A token that a model found probable at a position."""

    token: str
    probability: float
    is_target: bool


class ShownPosition(TypedDict):
    """A worst position as the page shows it."""

    prompt_id: str
    category: str
    position: int
    kl_nats: float
    context: str
    target: str
    baseline: list[Choice]  # the most probable first
    method: list[Choice]


class Parted(TypedDict):
    """Two answers to one prompt, cut where they part."""

    prompt_id: str
    category: str
    prompt: str
    token: int  # index of the first that differs
    shared: str
    baseline_rest: str
    method_rest: str


def worst_positions(cell: Cell) -> list[ShownPosition] | None:
    """divergence.json's worst positions with their texts made visible; None where the results were made before this
    was recorded.
    """
    records = cell.divergence.get("worst_positions")
    return None if records is None else [shown(record) for record in records]


def shown(record: WorstPositionInWords) -> ShownPosition:
    context = one_line(record["context"])
    cut = "… " if record["context_is_cut"] or len(context) > CONTEXT_CHARACTERS else ""

    def choices(top: Ranked) -> list[Choice]:
        return [
            {"token": token(record["token_texts"][str(i)]), "probability": p, "is_target": i == record["target_id"]}
            for i, p in top
        ]

    return {
        "prompt_id": record["prompt_id"],
        "category": record["category"],
        "position": record["position"],
        "kl_nats": record["kl_nats"],
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


def responses(cell: Cell, results: Results, prompts: dict[str, str]) -> list[Parted]:
    """Two answers to one prompt of each category, cut where they part: the prompt whose answers part earliest."""
    columns = ["prompt_id", "category", "token_ids", "text"]
    mine, baseline = (read_parquet(c.folder / "generation.parquet", columns) for c in (cell, results.baseline))
    earliest: dict[str, Parted] = {}
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
