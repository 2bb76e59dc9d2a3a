"""What all charts share: look, marks by method, and drawing to SVG and PNG from one specification.

Methods are told apart by shape and by label as well as by colour (Okabe and Ito's palette, safe for the colour-blind),
so a grey print loses nothing. The few colours of ink, grid and page are the ones that the page's style sheet replaces
in the dark.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import altair
import pandas
import vl_convert

from quantharm.common.files import replacing, write_text
from quantharm.reporting.results import Cell, Results

INK, MUTED, GRID, PAGE = "#1f2430", "#5c6370", "#d9dce1", "#ffffff"
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f7f7f"]
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left"]
FONT = "Helvetica, Arial, sans-serif"
PNG_SCALE = 2.0


@dataclass(frozen=True)
class Figure:
    """One chart: its specification, and the text that stands for it where it cannot be seen."""

    key: str
    title: str
    chart: altair.TopLevelMixin
    alternative: str
    caption: str = ""


def named(cell: Cell) -> str:
    """A method's name in charts; `†` marks one whose figures are not to be believed."""
    return f"{cell.method} †" if cell.failed else cell.method


def scales(results: Results) -> dict[str, altair.Scale]:
    return method_scales([named(cell) for cell in results.cells])


def ends(bounds: list[float] | None, value: float | None) -> dict[str, float | None]:
    """An interval as two columns; a figure without one is its own interval."""
    low, high = bounds or (value, value)
    return {"low": low, "high": high}


def method_scales(methods: list[str]) -> dict[str, altair.Scale]:
    """Colour and shape of each method, the same in every chart of a report."""
    many = range(len(methods))
    return {
        "colour": altair.Scale(domain=methods, range=[COLOURS[i % len(COLOURS)] for i in many]),
        "shape": altair.Scale(domain=methods, range=[SHAPES[i % len(SHAPES)] for i in many]),
    }


def styled(chart):
    """The house style; lengths in pixels."""
    return (
        chart.configure(font=FONT, background=PAGE, padding=8)
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=INK,
            titleColor=INK,
            gridColor=GRID,
            domainColor=MUTED,
            tickColor=MUTED,
            labelFontSize=12,
            titleFontSize=12,
            titleFontWeight="normal",
            titlePadding=10,
            labelLimit=220,
        )
        .configure_legend(
            labelColor=INK,
            titleColor=INK,
            labelFontSize=12,
            titleFontSize=12,
            orient="top",
            title=None,
            symbolSize=90,
            columnPadding=24,  # a page may have a wider font than the one that was measured with
        )
        .configure_header(labelColor=INK, titleColor=INK, labelFontSize=12, titleFontSize=12)
        .configure_title(color=INK, subtitleColor=MUTED, fontSize=13, fontWeight="bold", anchor="start", offset=10)
        .configure_text(color=INK, fontSize=12)
    )


def nothing_to_show(words: str):
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
    return f" Left out, since they failed checks: {', '.join(names)}." if names else ""


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within [low, high]; 1, 2, 5 steps where that is less than two decades."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1,) if math.log10(high / low) > 2 else (1, 2, 5)
    return [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]


def to_svg(figure: Figure) -> str:
    return vl_convert.vegalite_to_svg(styled(figure.chart).to_json())


def write_figure(folder: Path, figure: Figure) -> str:
    """<key>.svg and <key>.png; returns the SVG."""
    specification = styled(figure.chart).to_json()
    svg = vl_convert.vegalite_to_svg(specification)
    write_text(folder / f"{figure.key}.svg", svg)
    with replacing(folder / f"{figure.key}.png") as path:
        path.write_bytes(vl_convert.vegalite_to_png(specification, scale=PNG_SCALE))
    return svg
