"""Quality against size for many methods: wide panels, axes that stretch what is small, labels led to their points.

Both axes of quality are symmetric-logarithmic: linear up to a constant, logarithmic beyond, so that 0 has a place.
"""

import math
from collections.abc import Callable

import altair
import pandas

from quantharm.reporting.charts.base import INK, MUTED, PAGE
from quantharm.reporting.charts.marks import Entry, Marks, on_intervals, staircase

MANY = 12  # methods
WIDTH, HEIGHT = 800, 440  # pixels, of a panel
LABEL_PIXELS = 15  # in height
GAP_SHARE = 0.06  # of the width: points farther apart than that have columns of labels of their own


def spread(heights: list[float], least: float) -> list[float]:
    """The ascending heights moved as little as possible (least squares) to lie at least `least` apart.

    By pooling neighbours that are too near around their mean.
    """
    pools: list[tuple[float, int]] = []  # (sum of heights less what is due to the order, members)
    for i, height in enumerate(heights):
        pools.append((height - i * least, 1))
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] > pools[-1][0] / pools[-1][1]:
            total, members = pools.pop()
            pools[-1] = (pools[-1][0] + total, pools[-1][1] + members)
    means = [total / members for total, members in pools for _ in range(members)]
    return [mean + i * least for i, mean in enumerate(means)]


def columns_of(x: list[float], gap: float) -> list[list[int]]:
    """The points from left to right, in groups that a gap separates."""
    columns: list[list[int]] = []
    for i in sorted(range(len(x)), key=lambda i: x[i]):
        if columns and x[i] - x[columns[-1][-1]] <= gap:
            columns[-1].append(i)
        else:
            columns.append([i])
    return columns


def labelled(entries: pandas.DataFrame, domain: list[float], stretch: Callable, back: Callable, length: float):
    """`entries` with the place of each label, right of its group of points; length: of the stretched axis."""
    entries, wide = entries.copy(), domain[1] - domain[0]
    entries["label_x"], entries["label_y"] = 0.0, 0.0
    for members in columns_of(list(entries["size"]), GAP_SHARE * wide):
        members = sorted(members, key=lambda i: entries["value"].iloc[i])
        heights = spread([stretch(entries["value"].iloc[i]) for i in members], LABEL_PIXELS / HEIGHT * length)
        right = max(entries["size"].iloc[i] for i in members) + 0.025 * wide
        for i, height in zip(members, heights, strict=True):
            entries.loc[entries.index[i], ["label_x", "label_y"]] = right, back(height)
    return entries


def panel(rows: list[Entry], title: str, size_title: str, constant: float, marks: Marks) -> altair.LayerChart:
    """rows: method, size, value, low, high and front of each; constant: up to which the axis is linear."""

    def stretch(value: float) -> float:
        return math.copysign(math.log1p(abs(value) / constant), value)

    def back(height: float) -> float:
        return math.copysign(constant * math.expm1(abs(height)), height)

    entries = pandas.DataFrame(rows)
    sizes = [entries["size"].min(), entries["size"].max()]
    domain = [sizes[0] - 0.04 * (sizes[1] - sizes[0]), sizes[1] + 0.16 * (sizes[1] - sizes[0])]
    bottom, top = stretch(min(0.0, entries["low"].min())), stretch(max(entries["high"].max(), constant))
    entries = labelled(entries, domain, stretch, back, top - bottom)
    bottom = min(bottom, stretch(entries["label_y"].min())) - 0.04 * (top - bottom)
    top = max(top, stretch(entries["label_y"].max())) + 0.06 * (top - bottom)
    scale = altair.Scale(type="symlog", constant=constant, domain=[back(bottom), back(top)], nice=False)
    axis = altair.Axis(values=ticks(back(bottom), back(top), constant), format="~g")
    x = altair.X("size:Q", title=size_title, scale=altair.Scale(domain=domain, nice=False, zero=False))

    def y(field: str) -> altair.Y:
        return altair.Y(f"{field}:Q", title=title, scale=scale, axis=axis)

    base = altair.Chart(entries).encode(x=x)
    words = altair.Chart(entries).encode(x=altair.X("label_x:Q", title=size_title), y=y("label_y"), text="method:N")
    text = {"align": "left", "dx": 3, "baseline": "middle", "fontSize": 11}
    return altair.layer(
        staircase(entries, x, y("value")),
        base.mark_rule(color=MUTED, strokeWidth=0.6, opacity=0.7).encode(y=y("value"), x2="label_x:Q", y2="label_y:Q"),
        *on_intervals(base, "y", marks, 1.4, 80, title=title, scale=scale, axis=axis),
        words.mark_text(**text, color=PAGE, stroke=PAGE, strokeWidth=4),  # keeps lines off the words
        words.mark_text(**text, color=INK),
    ).properties(width=WIDTH, height=HEIGHT)


def ticks(low: float, high: float, constant: float) -> list[float]:
    """0 and the powers of ten from the constant on, with 3 times each, both signs, within [low, high]."""
    powers = [constant * 10**k * step for k in range(8) for step in (1, 3)]
    return [tick for tick in [0.0, *powers, *(-power for power in powers)] if low <= tick <= high]
