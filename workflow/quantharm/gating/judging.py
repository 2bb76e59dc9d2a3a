"""Every limit of a budget on every cell of a model, as lines of budget.json."""

from pathlib import Path

from quantharm.common.constants import BASELINE
from quantharm.common.left_out import LeftOut, sentence
from quantharm.config.entries import Budget
from quantharm.gating.earlier import read_earlier
from quantharm.gating.figures import figure_of
from quantharm.gating.limits import has_limits, limits_of
from quantharm.gating.verdicts import NOT_MEASURED, Line, is_accepted, line
from quantharm.gating.worsening import figure_against, worse_limits
from quantharm.reporting.results import Results

UNFINISHED = "unfinished"  # in the place of a limit: a cell of which none could be judged


def judged(results: Results, budget: Budget) -> list[Line]:
    """A line for each limit on each cell that was compared; none without a budget."""
    if not has_limits(budget):
        return []
    earlier = read_earlier(Path(budget["against"]), results.model) if budget["against"] else None
    lines = []
    for cell in results.cells:
        baseline = cell.method == BASELINE
        for limit in limits_of(budget, results.model, cell.method, results.categories, baseline):
            lines.append(line(results.model, cell.method, limit, figure_of(limit, cell, results), budget))
        if budget["against"] is not None and not baseline:
            for limit in worse_limits(budget):
                figure = figure_against(limit, cell, results, earlier)
                lines.append(line(results.model, cell.method, limit, figure, budget))
    return lines


def unfinished(left_out: list[LeftOut], budget: Budget) -> list[Line]:
    """A line for each cell, or whole model, that could not be compared."""
    return [
        Line(
            model=entry["model"],
            method=entry["method"],
            limit=UNFINISHED,
            subject=None,
            value=None,
            ci95=None,
            counted=None,
            of="",
            bound=None,
            at_most=True,
            verdict=NOT_MEASURED,
            reason=sentence(entry),
            accepted=is_accepted(NOT_MEASURED, budget),
        )
        for entry in left_out
        if not entry["compared"]
    ]
