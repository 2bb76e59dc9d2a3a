"""What all charts share: the look, logarithmic axes, and writing them as SVG and PNG.

The few colours of ink, grid and page are the ones that the page's style sheet replaces in the dark.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import altair
import pandas
import vl_convert

from quantharm.common.files import replacing, write_text
from quantharm.reporting.names import FIGURES, OVERVIEW_FIGURES

INK, MUTED, GRID, PAGE = "#1f2430", "#5c6370", "#d9dce1", "#ffffff"
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f7f7f"]
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


def nothing_to_show(words: str) -> altair.Chart:
    """Stands in for a chart that has no data."""
    text = altair.Chart(pandas.DataFrame({"words": [words]})).mark_text(fontSize=13, color=MUTED)
    return text.encode(text="words:N").properties(width=480, height=60)


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
