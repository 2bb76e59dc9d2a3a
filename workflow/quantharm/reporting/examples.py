"""What the harm looks like: the worst positions, and responses of baseline and method where they first differ."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantharm.common.files import read_parquet
from quantharm.common.paired import first_difference
from quantharm.common.prompts import read_prompts
from quantharm.reporting.results import Cell, Results
from quantharm.reporting.text import one_line, shortened, visible

PROMPT_CHARACTERS = 400
CONTEXT_CHARACTERS = 220


@dataclass(frozen=True)
class Choice:
    token: str
    probability: float
    is_target: bool


@dataclass(frozen=True)
class Position:
    """One position, with both models' first choices, the most probable first."""

    rank: int
    prompt_id: str
    category: str
    position: int
    kl_nats: float
    context: str
    target: str
    baseline: list[Choice]
    method: list[Choice]


@dataclass(frozen=True)
class Response:
    """Two answers to one prompt, cut where they part."""

    prompt_id: str
    category: str
    prompt: str
    token: int  # index of the first differing token
    shared: str
    baseline_rest: str
    method_rest: str


def token(text: str) -> str:
    """A token as one visible word: its blanks would not be seen."""
    return one_line(text).replace(" ", "␣") or "∅"


def choices(record: dict[str, Any], key: str) -> list[Choice]:
    texts = record["token_texts"]
    return [Choice(token(texts[str(i)]), p, i == record["target_id"]) for i, p in record[key]]


def worst_positions(cell: Cell) -> list[Position] | None:
    """None where the results were made before this was recorded."""
    records = cell.divergence.get("worst_positions")
    if records is None:
        return None
    found = []
    for rank, record in enumerate(records, 1):
        context = one_line(record["context"])
        cut = record["context_is_cut"] or len(context) > CONTEXT_CHARACTERS
        found.append(
            Position(
                rank,
                record["prompt_id"],
                record["category"],
                record["position"],
                record["kl_nats"],
                ("… " if cut else "") + context[-CONTEXT_CHARACTERS:],
                token(record["target"]),
                choices(record, "baseline_top5"),
                choices(record, "method_top5"),
            )
        )
    return found


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


def responses(cell: Cell, results: Results, prompts: dict[str, str]) -> list[Response]:
    """One prompt of each category: the one whose two answers part earliest."""
    columns = ["prompt_id", "category", "token_ids", "text"]
    both = read_parquet(cell.folder / "generation.parquet", columns).merge(
        read_parquet(results.baseline.folder / "generation.parquet", columns),
        on="prompt_id",
        suffixes=("", "_baseline"),
    )
    earliest: dict[str, Response] = {}
    for row in both.itertuples():
        index = first_difference(list(row.token_ids), list(row.token_ids_baseline))
        if index is None or (row.category in earliest and earliest[row.category].token <= index):
            continue
        shared, baseline_rest, method_rest = parting(visible(row.text_baseline), visible(row.text))
        earliest[row.category] = Response(
            row.prompt_id,
            row.category,
            shortened(visible(prompts.get(row.prompt_id, "")), PROMPT_CHARACTERS),
            index,
            shared.lstrip("\n"),  # blank lines at the start say nothing
            baseline_rest,
            method_rest,
        )
    return [earliest[c] for c in results.categories if c in earliest]
