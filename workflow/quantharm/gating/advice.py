"""The method to ship: of those within the budget, the one that the config prefers."""

from typing import TypedDict

from quantharm.common.constants import BASELINE
from quantharm.config.entries import Budget
from quantharm.gating.limits import kind_of
from quantharm.gating.verdicts import BREACH, NOT_MEASURED, PASS, UNDECIDED, Line
from quantharm.reporting.format import count, listing, mean_kl, percent, size
from quantharm.reporting.results import Cell, Results

PREFERRED = {"smallest": "the smallest", "closest": "the closest to the baseline", "fastest": "the fastest"}


class Advice(TypedDict):
    """A budget's advice on one model, as in budget.json."""

    model: str
    ship: str | None  # the method; None where none is within the budget
    within: list[str]  # methods that are
    sentence: str


def preferred(cells: list[Cell], prefer: str) -> Cell:
    """The first by the config's `prefer`; of equals the closest to the baseline."""
    order = {
        "smallest": lambda cell: (cell.weight_bytes, cell.row["kl_nats_mean"]),
        "closest": lambda cell: (cell.row["kl_nats_mean"], cell.weight_bytes),
        "fastest": lambda cell: (-cell.decode_change[0], cell.row["kl_nats_mean"]),
    }
    seen = [cell for cell in cells if not cell.served]  # what is behind an address has no size, and no time of here
    return min(seen or cells, key=order[prefer] if seen else lambda cell: cell.row["kl_nats_mean"])


def advise(results: Results, lines: list[Line], budget: Budget) -> Advice:
    """lines: of this model. A method is within the budget where the gate accepts each of its lines."""
    refused: dict[str, list[Line]] = {cell.method: [] for cell in results.cells}
    for entry in lines:
        if entry["method"] in refused and not entry["accepted"]:
            refused[entry["method"]].append(entry)
    within = [cell for cell in results.methods if not cell.failed and not refused[cell.method]]
    others = [f"{cell.method} ({reasons(refused[cell.method])})" for cell in results.methods if refused[cell.method]]
    ship = None
    if refused[BASELINE]:
        words = f"Ship nothing yet: {BASELINE}, which every figure is compared with ({reasons(refused[BASELINE])})"
    elif not within:
        words = f"Ship {BASELINE}: no method is within the budget ({'; '.join(others) or 'none was run'})"
        ship = BASELINE
    else:
        best = preferred(within, budget["prefer"])
        ship = best.method
        several = f"{PREFERRED[budget['prefer']]} of the {len(within)} methods"
        rank = several if len(within) > 1 else "the only method"
        words = (
            f"Ship {best.method}: {rank} (of {len(results.methods)}) within the budget: "
            f"{size(best.row['weight_bytes'])} in place of {size(results.baseline.row['weight_bytes'])}{quality(best)}"
        )
        undecided = [e for e in lines if e["method"] == best.method and e["verdict"] in (UNDECIDED, NOT_MEASURED)]
        if undecided:
            words += f"; not shown to be within it: {listing([named(e) for e in undecided])}"
        words += f". Not {'; not '.join(others)}" if others else ""
    return Advice(model=results.model, ship=ship, within=[cell.method for cell in within], sentence=f"{words}.")


def quality(cell: Cell) -> str:
    """`, perplexity +1.20 %, KL 0.0123 nats`; nothing of synthetic weights."""
    if cell.synthetic:
        return ""
    return f", perplexity {percent(cell.row['perplexity_change_percent'])}, KL {mean_kl(cell.row)} nats"


def named(entry: Line) -> str:
    """`mean KL in Translation`"""
    return kind_of(entry["limit"]).label + (f" in {entry['subject']}" if entry["subject"] else "")


def reasons(lines: list[Line]) -> str:
    """`mean KL: breach`: those of the worst verdict."""
    worst = next(v for v in (BREACH, NOT_MEASURED, UNDECIDED, PASS) if any(e["verdict"] == v for e in lines))
    return f"{listing([named(e) for e in lines if e['verdict'] == worst])}: {worst}"


def outcome(lines: list[Line]) -> tuple[bool, str]:
    """(whether the gate passes, one sentence)."""
    counts = {v: sum(e["verdict"] == v for e in lines) for v in (PASS, BREACH, UNDECIDED, NOT_MEASURED)}
    refused = [e for e in lines if not e["accepted"]]
    told = ", ".join(f"{many} {verdict}" for verdict, many in counts.items() if many)
    if not refused:
        return True, f"The gate passes: {count(len(lines), 'limit')} ({told})."
    which = [f"{e['model']} × {e['method']}" if e["method"] else e["model"] for e in refused]
    return False, f"The gate fails for {listing(list(dict.fromkeys(which)))}: {count(len(lines), 'limit')} ({told})."
