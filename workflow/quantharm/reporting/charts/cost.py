"""Charts of seconds and bytes, as Altair specifications over the finished figures."""

import altair
import pandas

from quantharm.reporting.charts.base import GRID, INK, Figure, ends, named, scales
from quantharm.reporting.format import count, fixed, listing, number, seconds, size, size_unit
from quantharm.reporting.names import FIGURES
from quantharm.reporting.results import Results
from quantharm.reporting.tables.cost import formula_bytes


def time_by_category(results: Results) -> Figure:
    rows = [
        {"method": named(cell), "category": category, "seconds": v["seconds_mean"]}
        for cell in results.cells
        for category, v in cell.generation["by_category"].items()
    ]
    marks = scales(results)
    data = pandas.DataFrame(rows)
    y = altair.Y("category:N", sort=results.categories, title=None, axis=altair.Axis(grid=True, gridDash=[1, 3]))
    x = altair.X(
        "seconds:Q", title="Seconds a prompt, mean", scale=altair.Scale(zero=True), axis=altair.Axis(tickCount=8)
    )
    span = (
        altair.Chart(data)
        .mark_rule(color=GRID, strokeWidth=2)
        .encode(y=y, x=altair.X("min(seconds):Q", title="Seconds a prompt, mean"), x2="max(seconds):Q")
    )
    points = (
        altair.Chart(data)
        .mark_point(filled=True, size=90, opacity=0.95)
        .encode(
            x=x,
            y=y,
            color=altair.Color("method:N", scale=marks["colour"]),
            shape=altair.Shape("method:N", scale=marks["shape"]),
        )
    )
    told = [f"{named(c)} {number(c.row['seconds_mean'])} s over all prompts" for c in results.cells]
    return Figure(
        "time-by-category",
        FIGURES["time-by-category"],
        altair.layer(span, points).properties(width=500, height=27 * max(1, len(results.categories))),
        f"Mean seconds a prompt by category and method. {'; '.join(told)}.",
        f"Means of {prompts_text(results)}; a longer answer takes longer, so see the lengths too.",
    )


def prompts_text(results: Results) -> str:
    counts = {v["prompts"] for v in results.baseline.generation["by_category"].values()}
    low, high = min(counts), max(counts)
    return count(low, "prompt") + " a category" if low == high else f"{low} to {high} prompts a category"


def speed_chart(results: Results) -> Figure:
    """Prefill and decode of the benchmark with intervals of the median."""
    rows = []
    for cell in results.cells:
        speed = cell.generation["benchmark"]
        prefill, decode = speed["prefill_seconds"], speed["decode_tokens_per_second"]
        bounds = prefill["ci95"] and [1000 * b for b in prefill["ci95"]]
        rows.append(
            {"method": named(cell), "panel": "prefill", "value": 1000 * prefill["median"]}
            | ends(bounds, 1000 * prefill["median"])
        )
        rows.append(
            {"method": named(cell), "panel": "decode", "value": decode["median"]}
            | ends(decode["ci95"], decode["median"])
        )
    data = pandas.DataFrame(rows)
    marks = scales(results)
    order = [named(c) for c in results.cells]

    def panel(name: str, title: str):
        own = altair.Chart(data[data["panel"] == name])
        y = altair.Y("method:N", sort=order, title=None)
        colour = altair.Color("method:N", scale=marks["colour"], legend=None)
        bars = own.mark_bar(height=15, opacity=0.8).encode(y=y, x=altair.X("value:Q", title=title), color=colour)
        rules = own.mark_rule(color=INK, strokeWidth=1.6).encode(y=y, x="low:Q", x2="high:Q")
        ticks = [own.mark_tick(color=INK, size=9, thickness=1.6).encode(y=y, x=f"{end}:Q") for end in ("low", "high")]
        return altair.layer(bars, rules, *ticks).properties(width=310, height=32 * len(order))

    told = [
        f"{named(c)}: prefill {seconds(c.row['prefill_seconds_median'])}, decode "
        f"{fixed(c.row['decode_tokens_per_second_median'], 1)} tokens/s"
        for c in results.cells
    ]
    return Figure(
        "speed",
        FIGURES["speed"],
        altair.hconcat(
            panel("decode", "Decode, tokens a second (more is better)"),
            panel("prefill", "Prefill, ms (less is better)"),
            spacing=30,
        ),
        f"Medians of prefill and decode with 95 % intervals. {'; '.join(told)}.",
        "Medians; brackets are 95 % intervals of the median over repetitions of this one run.",
    )


def sizes_chart(results: Results) -> Figure:
    """Loaded bytes as bars, the formula as a line across, the file on disk as a hollow point."""
    scale, unit = size_unit(results.baseline.row["weight_bytes"])
    data = pandas.DataFrame(
        [
            {
                "method": named(cell),
                "loaded": cell.row["weight_bytes"] / scale,
                "formula": formula_bytes(cell, results) / scale,
                "disk": cell.row["checkpoint_bytes"] / scale,
            }
            for cell in results.cells
        ]
    )
    order = [named(c) for c in results.cells]
    y = altair.Y("method:N", sort=order, title=None)
    kinds = ["loaded (bar)", "by the formula (line)", "on disk (point)"]
    base = altair.Chart(data)
    bars = base.mark_bar(height=18, color="#9db7cf").encode(y=y, x=altair.X("loaded:Q", title=f"Size, {unit}"))
    ticks = base.mark_tick(color=INK, thickness=2.5, size=28).encode(y=y, x="formula:Q")
    points = base.mark_point(shape="diamond", size=110, color="#d55e00", filled=False, strokeWidth=2).encode(
        y=y, x="disk:Q"
    )
    told = [
        f"{named(c)}: loaded {size(c.row['weight_bytes'])}, by the formula {size(formula_bytes(c, results))}, on disk "
        f"{size(c.row['checkpoint_bytes'])}"
        for c in results.cells
    ]
    return Figure(
        "sizes",
        FIGURES["sizes"],
        altair.layer(bars, ticks, points).properties(width=560, height=38 * len(order)),
        f"Sizes of each method's weights. {'; '.join(told)}.",
        f"{listing(kinds).capitalize()}. The line should cut the bar's end: then the format's promise is kept.",
    )
