"""Charts of seconds and bytes, as Altair specifications over the finished figures."""

import altair
import pandas

from quantharm.reporting.charts.base import GRID, INK, Figure, figure_of, nothing_to_show
from quantharm.reporting.charts.marks import bars, entry, marked, names_of
from quantharm.reporting.format import count, fixed, number, seconds, size, size_unit
from quantharm.reporting.results import Results
from quantharm.reporting.tables.cost import formula_bytes
from quantharm.reporting.tables.speed import Timed


def time_by_category(results: Results) -> Figure:
    rows = [
        {"method": cell.marked_name, "category": category, "seconds": v["seconds_mean"]}
        for cell in results.cells
        for category, v in cell.generation["by_category"].items()
    ]
    title = "Mean seconds per prompt"
    y = altair.Y("category:N", sort=results.categories, title=None, axis=altair.Axis(grid=True, gridDash=[1, 3]))
    x = altair.X("seconds:Q", title=title, scale=altair.Scale(zero=True), axis=altair.Axis(tickCount=8))
    base = altair.Chart(pandas.DataFrame(rows)).encode(y=y)
    span = base.mark_rule(color=GRID, strokeWidth=2).encode(
        x=altair.X("min(seconds):Q", title=title), x2="max(seconds):Q"
    )
    points = base.mark_point(filled=True, size=90, opacity=0.95).encode(
        x=x, **marked(names_of(results), legend=altair.Undefined)
    )
    told = [f"{c.marked_name} {number(c.row['seconds_mean'])} s over all prompts" for c in results.cells]
    return figure_of(
        "time-by-category",
        altair.layer(span, points).properties(width=500, height=27 * max(1, len(results.categories))),
        f"Mean seconds per prompt by category and method. {'; '.join(told)}.",
        f"Means of {prompts_text(results)}; a longer answer takes longer, so see the lengths too.",
    )


def prompts_text(results: Results) -> str:
    low, high = results.prompts_per_category
    return f"{count(low, 'prompt')} per category" if low == high else f"{low} to {high} prompts per category"


def speed_chart(results: Results) -> Figure:
    """Prefill and decode of the benchmark with intervals of the median."""

    def panel(figure: Timed, title: str, scale: float) -> altair.LayerChart:
        timings = [(cell, cell.generation["benchmark"][figure]) for cell in results.cells]
        rows = [
            entry(cell, scale * timing["median"], timing["ci95"] and [scale * bound for bound in timing["ci95"]])
            for cell, timing in timings
        ]
        return bars(pandas.DataFrame(rows), title, names_of(results), marked(names_of(results)))

    told = [
        f"{c.marked_name}: prefill {seconds(c.row['prefill_seconds_median'])}, decode "
        f"{fixed(c.row['decode_tokens_per_second_median'], 1)} tokens/s"
        for c in results.cells
    ]
    return figure_of(
        "speed",
        altair.hconcat(
            panel("decode_tokens_per_second", "Decode, tokens per second (more is better)", 1),
            panel("prefill_seconds", "Prefill, ms (less is better)", 1000),
            spacing=30,
        ),
        f"Medians of prefill and decode with 95 % intervals. {'; '.join(told)}.",
        "Medians; brackets are 95 % intervals of the median over repetitions of this one run.",
    )


def batches_chart(results: Results) -> Figure:
    """Decoding rate over batch size, both by powers of two."""
    rates = [
        (cell.marked_name, batch["batch_size"], rate["median"])
        for cell in results.cells
        for batch in cell.generation["benchmark"]["batches"]
        if (rate := batch["decode_tokens_per_second"])
    ]
    sizes = sorted({size for _, size, _ in rates})
    if len(sizes) < 2:
        words = "One batch size was timed: the table has its rates."
        return figure_of("rate-by-batch", nothing_to_show(words), words, "")
    entries = pandas.DataFrame(rates, columns=["method", "batch", "rate"])
    marks = marked(names_of(results), legend=altair.Undefined)
    power = altair.Scale(type="log", base=2, nice=False)
    base = altair.Chart(entries).encode(
        x=altair.X("batch:Q", title="Batch size", scale=power, axis=altair.Axis(values=sizes)),
        y=altair.Y("rate:Q", title="Tokens a second, all sequences", scale=power, axis=altair.Axis(format="~s")),
    )
    lines = base.mark_line(strokeWidth=1.5, opacity=0.7).encode(color=marks["color"])
    points = base.mark_point(filled=True, size=90, opacity=0.95).encode(**marks)
    told = [
        f"{name}: " + ", ".join(f"{fixed(rate, 1)} at batch {size}" for size, rate in own)
        for name in names_of(results)
        if (own := [(size, rate) for method, size, rate in rates if method == name])
    ]
    return figure_of(
        "rate-by-batch",
        altair.layer(lines, points).properties(width=460, height=300),
        f"Tokens a second by batch size and method. {'; '.join(told)}.",
        "Medians; where the lines come together, a quantized method gains nothing over the baseline.",
    )


def sizes_chart(results: Results) -> Figure:
    """Loaded bytes as bars, the formula as a line across, the file on disk as a hollow point."""
    scale, unit = size_unit(results.baseline.weight_bytes)
    sizes = {
        cell.marked_name: {
            "loaded": cell.weight_bytes,
            "by the formula": formula_bytes(cell, results),
            "on disk": cell.row["checkpoint_bytes"],
        }
        for cell in results.cells
        if not cell.served
    }
    entries = pandas.DataFrame(
        [{"method": name} | {kind: v and v / scale for kind, v in kinds.items()} for name, kinds in sizes.items()]
    )
    base = altair.Chart(entries).encode(y=altair.Y("method:N", sort=list(sizes), title=None))
    bar = base.mark_bar(height=18, color="#9db7cf").encode(x=altair.X("loaded:Q", title=f"Size, {unit}"))
    tick = base.mark_tick(color=INK, thickness=2.5, size=28).encode(x="by the formula:Q")
    point = base.mark_point(shape="diamond", size=110, color="#d55e00", filled=False, strokeWidth=2)
    told = [f"{name}: {', '.join(f'{kind} {size(v)}' for kind, v in kinds.items())}" for name, kinds in sizes.items()]
    return figure_of(
        "sizes",
        altair.layer(bar, tick, point.encode(x="on disk:Q")).properties(width=560, height=38 * len(sizes)),
        f"Sizes of each method's weights. {'; '.join(told)}.",
        "Loaded (bar), by the formula (line) and on disk (point). The line should meet the bar's end: the weights then "
        "have the size that the format promises.",
    )
