"""What all charts share: the look, marks by method, three ways to draw figures, and writing them as SVG and PNG.

Methods are told apart by shape and by label as well as by colour (Okabe and Ito's palette, safe for the colour-blind),
so a grey print loses nothing. The few colours of ink, grid and page are the ones that the page's style sheet replaces
in the dark.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair
import pandas
import vl_convert

from quantharm.common.files import replacing, write_text
from quantharm.reporting.names import FIGURES, OVERVIEW_FIGURES
from quantharm.reporting.results import Cell, Results

INK, MUTED, GRID, PAGE = "#1f2430", "#5c6370", "#d9dce1", "#ffffff"
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f7f7f"]
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left"]
PNG_SCALE = 2.0
KL_FLOOR = 1e-8  # nats; smaller ones, zero and rounding below it, are drawn here on logarithmic axes
TITLES = FIGURES | OVERVIEW_FIGURES


@dataclass(frozen=True)
class Figure:
    """One chart: its specification, and the text that stands for it where it cannot be seen."""

    key: str
    title: str
    chart: altair.TopLevelMixin
    alternative: str
    caption: str = ""


def figure_of(key: str, chart: altair.TopLevelMixin, alternative: str, caption: str) -> Figure:
    """A chart of those in names.py, which have their titles."""
    return Figure(key, TITLES[key], chart, alternative, caption)


@altair.theme.register("quantharm", enable=True)
def theme() -> altair.theme.ThemeConfig:
    """The house style; lengths in pixels."""
    ink = {"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "titleFontSize": 12}
    axis = {"gridColor": GRID, "domainColor": MUTED, "tickColor": MUTED, "titlePadding": 10, "labelLimit": 220}
    wide = 24  # between columns of a legend: a page may have a wider font than the one that was measured with
    return {
        "config": {
            "font": "Helvetica, Arial, sans-serif",
            "background": PAGE,
            "padding": 8,
            "view": {"stroke": None},
            "axis": ink | axis | {"titleFontWeight": "normal"},
            "legend": ink | {"orient": "top", "title": None, "symbolSize": 90, "columnPadding": wide},
            "header": ink,
            "title": {"color": INK, "subtitleColor": MUTED, "fontSize": 13, "anchor": "start", "offset": 10},
            "text": {"color": INK, "fontSize": 12},
        }
    }


def named(cell: Cell) -> str:
    """A method's name in charts; `†` marks one whose figures are not to be believed, `≥` one whose KL is a bound."""
    return f"{cell.method}{' ≥' if cell.bounded else ''}{' †' if cell.failed else ''}"


def names_of(results: Results) -> list[str]:
    return [named(cell) for cell in results.cells]


def marked(methods: list[str], field: str = "method", legend: Any = None) -> dict[str, Any]:
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


def entry(cell: Cell, value: float | None, bounds: list[float] | None = None, **more: Any) -> dict[str, Any]:
    """A row of a chart's data; a figure without an interval is its own."""
    low, high = bounds or (value, value)
    return {"method": named(cell), "value": value, "low": low, "high": high} | more


def dots(data: pandas.DataFrame, title: str, order: list[str], marks: dict[str, Any], **x: Any) -> list[altair.Chart]:
    """Layers: a row a method with its figure as a point on its interval; x: more of the horizontal channel, for
    both layers alike: the axis of a chart holds what each of its layers asks for.
    """
    base = altair.Chart(data).encode(y=altair.Y("method:N", sort=order, title=None, scale=altair.Scale(domain=order)))
    low = altair.X("low:Q", title=title, **x)
    rules = base.mark_rule(strokeWidth=2).encode(x=low, x2="high:Q", color=marks["color"])
    points = base.mark_point(filled=True, size=110, opacity=1)
    return [rules, points.encode(x=altair.X("value:Q", title=title, **x), **marks)]


def bars(data: pandas.DataFrame, title: str, order: list[str], marks: dict[str, Any]) -> altair.LayerChart:
    """A row a method with its figure as a bar, its interval as a bracket on the bar's end."""
    base = altair.Chart(data).encode(y=altair.Y("method:N", sort=order, title=None))
    bar = base.mark_bar(height=15, opacity=0.8).encode(x=altair.X("value:Q", title=title), color=marks["color"])
    rule = base.mark_rule(color=INK, strokeWidth=1.6).encode(x="low:Q", x2="high:Q")
    ticks = [base.mark_tick(color=INK, size=9, thickness=1.6).encode(x=f"{end}:Q") for end in ("low", "high")]
    return altair.layer(bar, rule, *ticks).properties(width=310, height=32 * len(order))


def nothing_to_show(words: str) -> altair.Chart:
    """Stands in for a chart that has no data."""
    text = altair.Chart(pandas.DataFrame({"words": [words]})).mark_text(fontSize=13, color=MUTED)
    return text.encode(text="words:N").properties(width=480, height=60)


def label_heights(x: list[float], y: list[float], width: float, height: float) -> list[float]:
    """y for the labels of points, so that labels of points near each other do not overlap.

    width, height: the axes' lengths in the units of x and y. A label takes a fifth of the width and a 17th of the
    height; from the lowest point up, each label is pushed above those already placed beside it.
    """
    placed: dict[int, float] = {}
    for i in sorted(range(len(x)), key=lambda i: (y[i], x[i])):
        near = sorted(placed[j] for j in placed if abs(x[j] - x[i]) < width / 5)
        at = y[i]
        for other in near:
            if abs(at - other) < height / 17:
                at = other + height / 17
        placed[i] = at
    return [placed[i] for i in range(len(x))]


def left_out(results: Results) -> str:
    """Says which methods a chart does not show."""
    names = [cell.method for cell in results.cells if cell.failed]
    words = f" Left out, since they failed checks: {', '.join(names)}." if names else ""
    served = [cell.method for cell in results.cells if cell.served]
    return words + (f" Without a size, since their weights are not seen: {', '.join(served)}." if served else "")


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within [low, high]; 1, 2, 5 steps where that is less than two decades."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1,) if math.log10(high / low) > 2 else (1, 2, 5)
    return [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]


def to_svg(figure: Figure) -> str:
    return vl_convert.vegalite_to_svg(figure.chart.to_json())


def write_figure(folder: Path, figure: Figure) -> str:
    """<key>.svg and <key>.png; returns the SVG."""
    svg = to_svg(figure)
    write_text(folder / f"{figure.key}.svg", svg)
    with replacing(folder / f"{figure.key}.png") as path:
        path.write_bytes(vl_convert.vegalite_to_png(figure.chart.to_json(), scale=PNG_SCALE))
    return svg
