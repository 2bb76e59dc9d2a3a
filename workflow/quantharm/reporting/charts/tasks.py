"""Recovery of each method, task by task."""

import altair
import pandas

from quantharm.reporting.charts.base import MUTED, Figure, figure_of, nothing_to_show
from quantharm.reporting.charts.marks import dots, entry, left_out, marked, names_of
from quantharm.reporting.format import share_to_a_tenth
from quantharm.reporting.results import Results
from quantharm.reporting.tables.tasks import answered

KEY = "recovery"


def recovery_chart(results: Results) -> Figure:
    """A panel a task: a row a method with its recovery as a point on its interval, the baseline's as a line."""
    methods = results.believed_methods
    recoveries = [
        (task, cell, 100 * row["recovery"], row["recovery_ci95"] and [100 * bound for bound in row["recovery_ci95"]])
        for task, cell, row in answered(results)
        if cell in methods and row["recovery"] is not None
    ]
    if not recoveries:
        return figure_of(KEY, nothing_to_show("No tasks were answered."), "No tasks were answered.", "")
    marks, order = marked(names_of(results)), [cell.marked_name for cell in methods]
    bounds = [bound for *_, recovery, ci95 in recoveries for bound in ci95 or [recovery]]
    scale = altair.Scale(domain=[min(99, *bounds) - 1, max(101, *bounds) + 1], nice=False)
    one = altair.Chart(pandas.DataFrame({"one": [100.0]}))
    whole = one.mark_rule(color=MUTED).encode(x=altair.X("one:Q", scale=scale))

    def panel(name: str) -> altair.LayerChart:
        entries = [entry(cell, recovery, ci95) for task, cell, recovery, ci95 in recoveries if task == name]
        title = "Recovery, % of the baseline's right answers"
        layers = dots(pandas.DataFrame(entries), order, marks, title=title, scale=scale)
        return altair.layer(whole, *layers).properties(width=460, height=34 * len(order), title=name)

    told = [f"{task}, {cell.marked_name}: {share_to_a_tenth(recovery / 100)}" for task, cell, recovery, _ in recoveries]
    return figure_of(
        KEY,
        altair.vconcat(*map(panel, dict.fromkeys(task for task, *_ in recoveries)), spacing=24),
        f"Recovery of each method by task, with 95 % intervals. {'; '.join(told)}.",
        f"An interval that holds 100 % shows no difference from the baseline.{left_out(results)}",
    )
