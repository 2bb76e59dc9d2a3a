"""Charts of what a method costs in quality, as Altair specifications over the finished figures."""

import altair
import numpy
import pandas

from quantharm.common.files import read_parquet
from quantharm.reporting.charts.base import (
    INK,
    MUTED,
    Figure,
    ends,
    label_heights,
    left_out,
    log_ticks,
    named,
    nothing_to_show,
    scales,
)
from quantharm.reporting.format import fixed, number, percent, size, size_unit
from quantharm.reporting.names import FIGURES
from quantharm.reporting.results import TEXT_CATEGORY, Cell, Results

KL_FLOOR = 1e-8  # nats; smaller ones, and rounding below zero, are drawn here
BINS = 60


def lower_left(cells: list[Cell]) -> list[str]:
    """Methods whose point no other point beats in size and KL: the staircase that the chart draws."""
    points = {c.method: (c.row["weight_bytes"], c.row["kl_nats_mean"]) for c in cells}

    def beaten(point: tuple[float, float]) -> bool:
        return any(a <= point[0] and b <= point[1] and (a, b) != point for a, b in points.values())

    return [method for method, point in points.items() if not beaten(point)]


def quality_against_size(results: Results) -> Figure:
    """Loaded size against mean KL and against ΔPPL, with intervals and the Pareto front."""
    scale, unit = size_unit(results.baseline.row["weight_bytes"])
    shown = results.believed or [results.baseline]
    front = lower_left(shown)
    rows = []
    for cell in shown:
        row = cell.row
        shared = {"method": named(cell), "size": row["weight_bytes"] / scale, "front": cell.method in front}
        kl, change = row["kl_nats_mean"], row["perplexity_change_percent"]
        rows.append(shared | {"panel": "kl", "value": kl} | ends(row["kl_nats_ci95"], kl))
        rows.append(
            shared | {"panel": "perplexity", "value": change} | ends(row["perplexity_change_percent_ci95"], change)
        )
    data = pandas.DataFrame(rows)
    marks = scales(results)
    largest = data["size"].max()

    def panel(name: str, title: str):
        own = data[data["panel"] == name].copy()
        top = max(own["high"].max(), 1e-9)
        x = altair.X(
            "size:Q", title=f"Weights loaded, {unit}", scale=altair.Scale(domain=[0, largest * 1.2], nice=False)
        )
        low = min(0.0, own["low"].min())
        y = altair.Y("value:Q", title=title, scale=altair.Scale(domain=[low - 0.04 * (top - low), top * 1.08]))
        own["label"] = label_heights(list(own["size"]), list(own["value"]), largest * 1.2, top - low)
        base = altair.Chart(own)
        line = (
            altair.Chart(own[own["front"]].sort_values("size"))
            .mark_line(interpolate="step-after", color=MUTED, strokeDash=[5, 4], strokeWidth=1.2)
            .encode(x=x, y=y)
        )
        bars = base.mark_rule(strokeWidth=1.6).encode(
            x=x,
            y=altair.Y("low:Q", title=title),
            y2="high:Q",
            color=altair.Color("method:N", scale=marks["colour"], legend=None),
        )
        points = base.mark_point(filled=True, size=130, opacity=1).encode(
            x=x,
            y=y,
            color=altair.Color("method:N", scale=marks["colour"], legend=None),
            shape=altair.Shape("method:N", scale=marks["shape"], legend=None),
        )
        labels = base.mark_text(align="left", dx=10, dy=-9, color=INK).encode(
            x=x, y=altair.Y("label:Q", title=title), text="method:N"
        )
        return altair.layer(line, bars, points, labels).properties(width=330, height=280)

    chart = altair.hconcat(panel("kl", "Mean KL, nats"), panel("perplexity", "Perplexity change, %"), spacing=40)
    told = [
        f"{named(c)}: {size(c.row['weight_bytes'])}, KL {number(c.row['kl_nats_mean'])} nats, perplexity "
        f"{percent(c.row['perplexity_change_percent'])}"
        for c in shown
    ]
    return Figure(
        "quality-against-size",
        FIGURES["quality-against-size"],
        chart,
        f"Two scatter charts of loaded size against mean KL and against perplexity change. {'; '.join(told)}.",
        "Lower and further left is better. Bars are 95 % intervals; the dashed step is the Pareto front of the points "
        f"(size against KL), the same methods in both panels.{left_out(results)}",
    )


def perplexity_chart(results: Results) -> Figure:
    """Perplexity with the interval over windows, and its paired change, a row a method."""
    rows = []
    cells = results.believed or [results.baseline]
    for cell in cells:
        row = cell.row
        shared = {"method": named(cell)}
        rows.append(
            shared | {"panel": "own", "value": row["perplexity"]} | ends(row["perplexity_ci95"], row["perplexity"])
        )
        if cell is not results.baseline:
            change = row["perplexity_change_percent"]
            rows.append(
                shared | {"panel": "change", "value": change} | ends(row["perplexity_change_percent_ci95"], change)
            )
    data = pandas.DataFrame(rows)
    marks = scales(results)
    order = [named(c) for c in cells]

    def panel(name: str, title: str, domain_zero: bool):
        own = data[data["panel"] == name]
        axis = altair.Axis(labels=name == "own", ticks=name == "own")
        y = altair.Y("method:N", sort=order, title=None, scale=altair.Scale(domain=order), axis=axis)
        x = altair.X("value:Q", title=title, scale=altair.Scale(zero=domain_zero))
        base = altair.Chart(own)
        rules = base.mark_rule(strokeWidth=2).encode(
            y=y,
            x=altair.X("low:Q", title=title),
            x2="high:Q",
            color=altair.Color("method:N", scale=marks["colour"], legend=None),
        )
        points = base.mark_point(filled=True, size=110, opacity=1).encode(
            y=y,
            x=x,
            color=altair.Color("method:N", scale=marks["colour"], legend=None),
            shape=altair.Shape("method:N", scale=marks["shape"], legend=None),
        )
        layers = [rules, points]
        if name == "change":
            zero = altair.Chart(pandas.DataFrame({"zero": [0.0]})).mark_rule(color=MUTED).encode(x="zero:Q")
            layers = [zero, *layers]
        return altair.layer(*layers).properties(width=310, height=34 * len(order))

    panels = [panel("own", "Perplexity", False)]  # the right panel shares the rows of the left one
    if len(cells) > 1:
        panels.append(panel("change", "Change from the baseline, % (paired)", True))
    told = [
        f"{named(c)} {fixed(c.row['perplexity'], 2)}"
        + ("" if c is results.baseline else f", {percent(c.row['perplexity_change_percent'])}")
        for c in cells
    ]
    return Figure(
        "perplexity",
        FIGURES["perplexity"],
        altair.hconcat(*panels, spacing=30),
        f"Perplexity of each method with 95 % intervals, and its change from the baseline. {'; '.join(told)}.",
        "Left: the interval covers how much the windows of text differ. Right: the change on the same windows, in "
        f"which that difference cancels.{left_out(results)}",
    )


def kl_by_category_chart(results: Results) -> Figure:
    """Heat map with the figure in every field: darker is more KL, on a logarithmic scale."""
    rows = [
        {"method": named(cell), "category": category, "kl": v["kl_nats_mean"], "shown": number(v["kl_nats_mean"], 2)}
        for cell in results.methods
        for category, v in cell.by_category.items()
    ]
    data = pandas.DataFrame(rows, columns=["method", "category", "kl", "shown"])
    data["kl"] = data["kl"].clip(lower=KL_FLOOR)
    if not len(data):
        words = "No method but the baseline was run."
        return Figure("kl-by-category", FIGURES["kl-by-category"], nothing_to_show(words), words, words)
    low, high = data["kl"].min(), data["kl"].max()
    low, high = low / 1.5, max(high * 1.2, low * 2)
    middle = (low * high) ** 0.5
    base = altair.Chart(data).encode(
        x=altair.X(
            "method:N",
            sort=[named(c) for c in results.methods],
            title=None,
            axis=altair.Axis(orient="top", labelAngle=0, domain=False, ticks=False),
        ),
        y=altair.Y("category:N", sort=results.categories, title=None, axis=altair.Axis(domain=False, ticks=False)),
    )
    fields = base.mark_rect(stroke="#ffffff", strokeWidth=2).encode(
        color=altair.Color(
            "kl:Q",
            scale=altair.Scale(type="log", scheme="blues", domain=[low, high]),
            legend=None,
        )
    )
    text = base.mark_text(fontSize=12).encode(
        text="shown:N",
        color=altair.condition(altair.datum.kl > middle * 1.3, altair.value("#fffffe"), altair.value("#11131a")),
    )
    width = min(560, max(300, 120 * max(1, len(results.methods))))
    chart = altair.layer(fields, text).properties(width=width, height=30 * max(1, len(results.categories)))
    worst = data.sort_values("kl").iloc[-1]
    told = f" Largest: {worst.category} with {worst.method}, {worst.shown} nats."
    return Figure(
        "kl-by-category",
        FIGURES["kl-by-category"],
        chart,
        f"Heat map of mean KL by category and method; every field holds its figure, as in the table.{told}",
        "Mean KL in nats: the figure stands in its field, darker is more (logarithmic).",
    )


def kl_distribution(results: Results) -> Figure:
    """Histograms of per-position KL on a log axis, a row a method, with percentiles marked."""
    histograms, quantiles = [], []
    kls = {}
    for cell in results.cells:
        rows = read_parquet(cell.folder / "divergence.parquet", ["category", "kl_nats"])
        kls[named(cell)] = rows.loc[rows["category"] != TEXT_CATEGORY, "kl_nats"].clip(lower=KL_FLOOR).to_numpy()
    lowest, highest = min(k.min() for k in kls.values()), max(k.max() for k in kls.values())
    edges = numpy.geomspace(lowest / 1.2, highest * 1.2, BINS + 1)
    for method, kl in kls.items():
        shares = numpy.histogram(kl, edges)[0] / len(kl)
        histograms += [
            {"method": method, "from": a, "to": b, "share": 100 * s}
            for a, b, s in zip(edges, edges[1:], shares, strict=False)
            if s
        ]
        quantiles += [
            {"method": method, "quantile": name, "kl": float(numpy.quantile(kl, q))}
            for name, q in (("median", 0.5), ("90 %", 0.9), ("99 %", 0.99), ("largest", 1.0))
        ]
    order = list(kls)
    colour = scales(results)["colour"]
    x = altair.X(
        "from:Q",
        title="KL of a position, nats (logarithmic)",
        scale=altair.Scale(type="log", domain=[edges[0], edges[-1]]),
        axis=altair.Axis(values=log_ticks(edges[0], edges[-1]), format=".0e", grid=True),
    )
    top = max(h["share"] for h in histograms)
    dashes = altair.Scale(domain=["median", "90 %", "99 %", "largest"], range=[[1, 0], [6, 3], [2, 2], [1, 3]])
    panels = []
    for method in order:
        own = pandas.DataFrame([h for h in histograms if h["method"] == method])
        marks = pandas.DataFrame([q for q in quantiles if q["method"] == method])
        bars = (
            altair.Chart(own)
            .mark_rect(opacity=0.75, stroke=None)
            .encode(
                x=x
                if method == order[-1]
                else x.axis(altair.Axis(values=log_ticks(edges[0], edges[-1]), labels=False, title=None, grid=True)),
                x2="to:Q",
                y=altair.Y(
                    "share:Q",
                    title="% of positions",
                    scale=altair.Scale(domain=[0, top * 1.25]),
                    axis=altair.Axis(tickCount=3),
                ),
                y2=altair.Y2Datum(0),
                color=altair.value(dict(zip(colour.domain, colour.range, strict=True))[method]),
            )
        )
        lines = (
            altair.Chart(marks)
            .mark_rule(color=INK, strokeWidth=1.3)
            .encode(x="kl:Q", strokeDash=altair.StrokeDash("quantile:N", scale=dashes, legend=None))
        )
        said = " · ".join(f"{q} {number(kl)}" for q, kl in zip(marks["quantile"], marks["kl"], strict=True))
        title = altair.TitleParams(method, subtitle=f"{said} nats", fontSize=12, subtitleFontSize=11, offset=4)
        panels.append(altair.layer(bars, lines).properties(width=620, height=76, title=title))
    told = [
        f"{q['method']} {q['quantile']}: {number(q['kl'])}"
        for q in quantiles
        if q["quantile"] in ("median", "99 %", "largest")
    ]
    return Figure(
        "kl-distribution",
        FIGURES["kl-distribution"],
        altair.vconcat(*panels, spacing=10),
        f"Histograms of the KL of single positions in nats, one for each method. {'; '.join(told)}.",
        f"All {results.baseline.divergence['positions']:,} positions of the prompts. Vertical lines: median (solid), "
        "90th (dashed) and 99th percentile (dotted), largest (sparse). The baseline's row is the noise floor; what is "
        f"below {number(KL_FLOOR)} nats is drawn there.",
    )
