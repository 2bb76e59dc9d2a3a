"""Recovery of each method, task by task."""

import altair
import pandas

from quantharm.reporting.charts.base import (
    MUTED,
    Figure,
    dots,
    entry,
    figure_of,
    left_out,
    marked,
    named,
    names_of,
    nothing_to_show,
)
from quantharm.reporting.format import share_to_a_tenth
from quantharm.reporting.results import Results
from quantharm.reporting.tables.tasks import answered

KEY = "recovery"


def recovery_chart(results: Results) -> Figure:
    """A panel a task: a row a method with its recovery as a point on its interval, the baseline's as a line."""
    methods = results.believed_methods
    rows = [row for row in answered(results) if row["cell"] in methods and row["recovery"] is not None]
    if not rows:
        return figure_of(KEY, nothing_to_show("No tasks were answered."), "No tasks were answered.", "")
    marks, order = marked(names_of(results)), [named(cell) for cell in methods]
    bounds = [100 * bound for row in rows for bound in row["recovery_ci95"] or [row["recovery"]]]
    scale = altair.Scale(domain=[min(99, *bounds) - 1, max(101, *bounds) + 1], nice=False)
    one = altair.Chart(pandas.DataFrame({"one": [100.0]}))
    whole = one.mark_rule(color=MUTED).encode(x=altair.X("one:Q", scale=scale))

    def panel(task: str) -> altair.LayerChart:
        data = [
            entry(row["cell"], 100 * row["recovery"], row["recovery_ci95"] and [100 * b for b in row["recovery_ci95"]])
            for row in rows
            if row["task"] == task
        ]
        layers = dots(pandas.DataFrame(data), "Recovery, % of the baseline's right answers", order, marks, scale=scale)
        return altair.layer(whole, *layers).properties(width=460, height=34 * len(order), title=task)

    told = [f"{row['task']}, {named(row['cell'])}: {share_to_a_tenth(row['recovery'])}" for row in rows]
    return figure_of(
        KEY,
        altair.vconcat(*(panel(task) for task in dict.fromkeys(row["task"] for row in rows)), spacing=24),
        f"Recovery of each method by task, with 95 % intervals. {'; '.join(told)}.",
        f"An interval that holds 100 % shows no difference from the baseline.{left_out(results)}",
    )
