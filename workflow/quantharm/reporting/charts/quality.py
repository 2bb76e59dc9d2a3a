"""Charts of quality against size, and of perplexity."""

import altair
import pandas

from quantharm.reporting.charts import against_size
from quantharm.reporting.charts.base import MUTED, Figure, figure_of
from quantharm.reporting.charts.marks import Entry, dots, entry_of, left_out, marked, names_of
from quantharm.reporting.format import fixed, mean_kl, percent, size, size_unit
from quantharm.reporting.results import Cell, Results

TITLES = {"kl_nats_mean": "Mean KL, nats", "perplexity_change_percent": "Perplexity change, %"}
STRETCHED_FROM = {"kl_nats_mean": 1e-3, "perplexity_change_percent": 0.1}  # where many methods are shown


def size_key(cells: list[Cell]) -> str:
    """Bytes loaded; bytes on disk where a format was unpacked to 16 bits as it was loaded, which says nothing of it."""
    unpacked = any(cell.quantization.get("held_dequantized") for cell in cells)
    return "checkpoint_bytes" if unpacked else "weight_bytes"


def lower_left(cells: list[Cell]) -> list[str]:
    """Methods whose point no other point beats in size and KL: the staircase that the chart draws."""
    key = size_key(cells)
    points = {c.method: (c.figure(key), c.figure("kl_nats_mean")) for c in cells}

    def beaten(point: tuple[float, float]) -> bool:
        return any(a <= point[0] and b <= point[1] and (a, b) != point for a, b in points.values())

    return [method for method, point in points.items() if not beaten(point)]


def quality_against_size(results: Results) -> Figure:
    """Size against mean KL and against ΔPPL, with intervals and the Pareto front."""
    shown = results.sized or [results.baseline]
    key = size_key(shown)
    where = "loaded" if key == "weight_bytes" else "on disk"
    scale, unit = size_unit(results.baseline.figure(key))
    front = lower_left(shown)
    marks = marked(names_of(results))

    def rows_of(figure: str) -> list[Entry]:
        return [entry_of(cell, figure, size=cell.figure(key) / scale, front=cell.method in front) for cell in shown]

    panels = [
        against_size.panel(rows_of(figure), title, f"Weights {where}, {unit}", marks, STRETCHED_FROM[figure])
        for figure, title in TITLES.items()
    ]
    tallest = max(panel.height for panel in panels)  # a panel grows with its labels
    panels = [panel.properties(height=tallest) for panel in panels]
    told = [
        f"{c.marked_name}: {size(c.figure(key))}, KL {mean_kl(c.row)} nats, perplexity "
        f"{percent(c.row['perplexity_change_percent'])}"
        for c in shown
    ]
    return figure_of(
        "quality-against-size",
        altair.vconcat(*panels, spacing=30) if len(shown) > against_size.MANY else altair.hconcat(*panels, spacing=40),
        f"Two scatter charts of the size {where} against mean KL and against perplexity change. {'; '.join(told)}.",
        "Lower and further left is better. Bars are 95 % intervals; the dashed step is the Pareto front of the points "
        f"(size against KL), the same methods in both panels.{left_out(results)}",
    )


def perplexity_chart(results: Results) -> Figure:
    """Perplexity with the interval over windows, and its paired change, a row a method."""
    cells = results.believed or [results.baseline]
    methods = [cell for cell in cells if cell is not results.baseline]
    marks, order = marked(names_of(results)), [c.marked_name for c in cells]

    def layers(shown: list[Cell], figure: str, title: str, zero: bool) -> list[altair.Chart]:
        entries = pandas.DataFrame([entry_of(cell, figure) for cell in shown])
        return dots(entries, order, marks, title=title, scale=altair.Scale(zero=zero))

    def panel(*layers: altair.Chart) -> altair.LayerChart:
        return altair.layer(*layers).properties(width=310, height=34 * len(order))

    panels = [panel(*layers(cells, "perplexity", "Perplexity", False))]
    if methods:
        change = layers(methods, "perplexity_change_percent", "Change from the baseline, % (paired)", True)
        zero = altair.Chart(pandas.DataFrame({"zero": [0.0]})).mark_rule(color=MUTED).encode(x="zero:Q")
        bare = altair.Axis(labels=False, ticks=False)  # the rows are those of the left panel
        panels.append(panel(zero, *(layer.encode(y=layer.encoding.y.axis(bare)) for layer in change)))
    told = [
        f"{c.marked_name} {fixed(c.row['perplexity'], 2)}"
        + ("" if c is results.baseline else f", {percent(c.row['perplexity_change_percent'])}")
        for c in cells
    ]
    return figure_of(
        "perplexity",
        altair.hconcat(*panels, spacing=30),
        f"Perplexity of each method with 95 % intervals, and its change from the baseline. {'; '.join(told)}.",
        "Left: the interval covers how much the windows of text differ. Right: the change on the same windows, "
        f"where that difference cancels.{left_out(results)}",
    )
