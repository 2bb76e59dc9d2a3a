"""A panel of quality against size: points on their intervals, the Pareto front, a label beside each point.

With many methods a panel is wide, and its axis of quality symmetric-logarithmic: linear up to a constant, logarithmic
beyond, so that small values are told apart and 0 has a place.
"""

import math
from dataclasses import dataclass

import altair
import pandas

from quantharm.reporting.charts.base import INK, MUTED, PAGE
from quantharm.reporting.charts.labels import FONT_SIZE, LABEL_HEIGHT, Point, places
from quantharm.reporting.charts.marks import Entry, Marks, on_intervals, staircase

MANY = 12  # methods
WIDTH, HEIGHT = 330, 280  # pixels
WIDTH_OF_MANY, HEIGHT_OF_MANY = 800, 440


@dataclass(frozen=True)
class Stretch:
    """From a figure to its height on the axis: linear up to `constant`, logarithmic beyond; as it is without one."""

    constant: float | None

    def height(self, value: float) -> float:
        return value if self.constant is None else math.copysign(math.log1p(abs(value) / self.constant), value)

    def value(self, height: float) -> float:
        return height if self.constant is None else math.copysign(self.constant * math.expm1(abs(height)), height)


def panel(rows: list[Entry], title: str, size_title: str, marks: Marks, constant: float) -> altair.LayerChart:
    """rows: method, size, value, low, high and front of each; constant: up to which a stretched axis is linear."""
    many = len(rows) > MANY
    stretch = Stretch(constant if many else None)
    width, height = (WIDTH_OF_MANY, HEIGHT_OF_MANY) if many else (WIDTH, HEIGHT)
    entries = pandas.DataFrame(rows)
    left, right = domain_of_sizes(entries["size"], many)
    bottom, top = domain_of_heights(entries, stretch)
    across, up = (right - left) / width, (top - bottom) / height  # units of a pixel

    def pixels(value: float) -> float:
        return (stretch.height(value) - bottom) / up

    placed = places(
        [
            Point((row.size - left) / across, pixels(row.value), pixels(row.low), pixels(row.high), row.method)
            for row in entries.itertuples()
        ]
    )
    entries["label_x"] = [left + place.x * across for place in placed]
    entries["label_y"] = [stretch.value(bottom + place.y * up) for place in placed]
    # Room for all labels: where there are too many for the panel's height, it grows.
    below = max(0.0, LABEL_HEIGHT / 2 - min(place.y for place in placed))
    above = max(0.0, max(place.y for place in placed) + LABEL_HEIGHT / 2 - height)
    low, high = stretch.value(bottom - below * up), stretch.value(top + above * up)

    kind = {"type": "symlog", "constant": constant} if many else {}
    scale = altair.Scale(**kind, domain=[low, high], nice=False)
    axis = altair.Axis(values=ticks(low, high, constant), format="~g") if many else altair.Axis()
    x = altair.X("size:Q", title=size_title, scale=altair.Scale(domain=[left, right], nice=False, zero=False))

    def y(field: str) -> altair.Y:
        return altair.Y(f"{field}:Q", title=title, scale=scale, axis=axis)

    base = altair.Chart(entries).encode(x=x)
    words = altair.Chart(entries).encode(x=altair.X("label_x:Q", title=size_title), y=y("label_y"), text="method:N")
    text = {"align": "left", "dx": 3, "baseline": "middle", "fontSize": FONT_SIZE}
    return altair.layer(
        staircase(entries, x, y("value")),
        base.mark_rule(color=MUTED, strokeWidth=0.6, opacity=0.7).encode(y=y("value"), x2="label_x:Q", y2="label_y:Q"),
        *on_intervals(base, "y", marks, 1.4, 80 if many else 130, title=title, scale=scale, axis=axis),
        words.mark_text(**text, color=PAGE, stroke=PAGE, strokeWidth=4),  # keeps lines off the words
        words.mark_text(**text, color=INK),
    ).properties(width=width, height=height + below + above)


def domain_of_sizes(sizes: pandas.Series, many: bool) -> tuple[float, float]:
    """From 0, or with many methods from the smallest; with room for labels on the right."""
    least, most = sizes.min(), sizes.max()
    span = (most - least) or most
    return (least - 0.04 * span, most + 0.16 * span) if many else (0.0, 1.2 * most)


def domain_of_heights(entries: pandas.DataFrame, stretch: Stretch) -> tuple[float, float]:
    """Lower and upper end of the axis of quality, stretched; it holds 0, and what is linear of a stretched axis."""
    least, most = min(0.0, entries["low"].min()), max(entries["high"].max(), stretch.constant or 1e-9)
    bottom, top = stretch.height(least), stretch.height(most)
    return bottom - 0.04 * (top - bottom), top + 0.06 * (top - bottom)


def ticks(low: float, high: float, constant: float) -> list[float]:
    """0 and the powers of ten from the constant on, with 3 times each, both signs, within [low, high]."""
    powers = [constant * 10**k * step for k in range(8) for step in (1, 3)]
    return [tick for tick in [0.0, *powers, *(-power for power in powers)] if low <= tick <= high]
