"""Figures of methods as marks: points, intervals, bars, labels.

Methods are told apart by shape and by label as well as by colour (Okabe and Ito's palette, safe for the colour-blind),
so a grey print loses nothing.
"""

from typing import Any

import altair
import pandas

from quantharm.reporting.charts.base import COLOURS, INK, MUTED
from quantharm.reporting.results import Cell, Results

SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left"]
Marks = dict[str, altair.Color | altair.Shape]  # the channels that tell methods apart
Entry = dict[str, str | float | None]  # a row of a chart's data


def names_of(results: Results) -> list[str]:
    return [cell.marked_name for cell in results.cells]


def names_of_kl(results: Results) -> list[str]:
    """The same for a chart of KL, whose entries have `method=cell.name_of_kl`."""
    return [cell.name_of_kl for cell in results.cells]


def marked(methods: list[str], field: str = "method", legend: Any = None) -> Marks:
    """The channels colour and shape of each method, the same in every chart of a report; legend: None for none."""
    ranges = {"color": (altair.Color, COLOURS), "shape": (altair.Shape, SHAPES)}
    return {
        channel: encode(
            f"{field}:N",
            scale=altair.Scale(domain=methods, range=[marks[i % len(marks)] for i in range(len(methods))]),
            legend=legend,
        )
        for channel, (encode, marks) in ranges.items()
    }


def entry(cell: Cell, value: float | None, bounds: list[float] | None = None, **more: str | float | None) -> Entry:
    """A row of a chart's data; a figure without an interval is its own."""
    low, high = bounds or (value, value)
    return {"method": cell.marked_name, "value": value, "low": low, "high": high} | more


def entry_of(cell: Cell, figure: str, **more: str | float | None) -> Entry:
    """The same of a figure of the summary."""
    return entry(cell, cell.figure(figure), cell.interval(figure), **more)


def on_intervals(
    base: altair.Chart, channel: str, marks: Marks, width: float, size: float, **more: Any
) -> list[altair.Chart]:
    """Layers: each figure as a point on its interval; width, size: of the interval's line and of the point.

    more: of the channel, x or y, for both layers alike: the axis of a chart holds what each of its layers asks for.
    """
    axis = {"x": altair.X, "y": altair.Y}[channel]
    low, value = (axis(f"{end}:Q", **more) for end in ("low", "value"))
    rules = base.mark_rule(strokeWidth=width)
    rules = rules.encode(color=marks["color"], **{channel: low, f"{channel}2": "high:Q"})
    return [rules, base.mark_point(filled=True, size=size, opacity=1).encode(**{channel: value}, **marks)]


def dots(entries: pandas.DataFrame, order: list[str], marks: Marks, **x: Any) -> list[altair.Chart]:
    """Layers: a row a method with its figure as a point on its interval; x: of the horizontal axis."""
    base = altair.Chart(entries).encode(
        y=altair.Y("method:N", sort=order, title=None, scale=altair.Scale(domain=order))
    )
    return on_intervals(base, "x", marks, 2, 110, **x)


def staircase(entries: pandas.DataFrame, x: altair.X, y: altair.Y) -> altair.Chart:
    """The Pareto front: steps from each point of it to the next larger one."""
    steps = altair.Chart(entries[entries["front"]].sort_values("size")).encode(x=x, y=y)
    return steps.mark_line(interpolate="step-after", color=MUTED, strokeDash=[5, 4], strokeWidth=1.2)


def bars(entries: pandas.DataFrame, title: str, order: list[str], marks: Marks) -> altair.LayerChart:
    """A row a method with its figure as a bar, its interval as a bracket on the bar's end."""
    base = altair.Chart(entries).encode(y=altair.Y("method:N", sort=order, title=None))
    bar = base.mark_bar(height=15, opacity=0.8).encode(x=altair.X("value:Q", title=title), color=marks["color"])
    rule = base.mark_rule(color=INK, strokeWidth=1.6).encode(x="low:Q", x2="high:Q")
    ticks = [base.mark_tick(color=INK, size=9, thickness=1.6).encode(x=f"{end}:Q") for end in ("low", "high")]
    return altair.layer(bar, rule, *ticks).properties(width=310, height=32 * len(order))


def left_out(results: Results) -> str:
    """Says which methods a chart does not show."""
    names = [cell.method for cell in results.cells if cell.failed]
    words = f" Left out, since they failed checks: {', '.join(names)}." if names else ""
    served = [cell.method for cell in results.cells if cell.served]
    return words + (f" Without a size, since their weights are not seen: {', '.join(served)}." if served else "")
