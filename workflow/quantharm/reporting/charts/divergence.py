"""Charts of the KL divergence: by category, position by position, and on the text."""

from collections.abc import Callable, Mapping
from typing import Any

import altair
import numpy
import pandas

from quantharm.common.constants import TEXT_CATEGORY
from quantharm.common.files import read_parquet
from quantharm.common.records.perplexity import KlOfBin
from quantharm.reporting.charts.base import COLOURS, INK, KL_FLOOR, Figure, figure_of, log_ticks, nothing_to_show
from quantharm.reporting.charts.marks import entry, left_out, marked, names_of_kl, on_intervals
from quantharm.reporting.format import number
from quantharm.reporting.results import Cell, Results

BINS = 60
ALL_EQUAL = 99  # percent of the positions in one bin: a method so near to the baseline has its own vertical axis


def kl_by_category_chart(results: Results) -> Figure:
    """Heat map with the figure in every field: darker is more KL, on a logarithmic scale."""
    rows = [
        {
            "method": cell.name_of_kl,
            "category": category,
            "kl": v["kl_nats_mean"],
            "shown": number(v["kl_nats_mean"], 2),
        }
        for cell in results.methods
        for category, v in cell.by_category.items()
    ]
    if not rows:
        words = "No method but the baseline was run."
        return figure_of("kl-by-category", nothing_to_show(words), words, words)
    entries = pandas.DataFrame(rows)
    entries["kl"] = entries["kl"].clip(lower=KL_FLOOR)
    low, high = entries["kl"].min() / 1.5, max(1.2 * entries["kl"].max(), 2 * entries["kl"].min())
    plain = {"domain": False, "ticks": False}
    top = altair.Axis(orient="top", labelAngle=0, **plain)
    base = altair.Chart(entries).encode(
        x=altair.X("method:N", sort=[c.name_of_kl for c in results.methods], title=None, axis=top),
        y=altair.Y("category:N", sort=results.categories, title=None, axis=altair.Axis(**plain)),
    )
    blues = altair.Scale(type="log", scheme="blues", domain=[low, high])
    fields = base.mark_rect(stroke="#ffffff", strokeWidth=2).encode(
        color=altair.Color("kl:Q", scale=blues, legend=None)
    )
    dark = altair.datum.kl > (low * high) ** 0.5 * 1.3
    text = base.mark_text(fontSize=12).encode(
        text="shown:N", color=altair.condition(dark, altair.value("#fffffe"), altair.value("#11131a"))
    )
    width = min(560, max(300, 120 * len(results.methods)))
    worst = entries.sort_values("kl").iloc[-1]
    told = f" Largest: {worst.category} with {worst.method}, {worst.shown} nats."
    return figure_of(
        "kl-by-category",
        altair.layer(fields, text).properties(width=width, height=30 * len(results.categories)),
        f"Heat map of mean KL by category and method; every field holds its figure, as in the table.{told}",
        "Mean KL in nats: the figure stands in its field, darker is more (logarithmic).",
    )


QUANTILES = {"median": (0.5, [1, 0]), "90 %": (0.9, [6, 3]), "99 %": (0.99, [2, 2]), "largest": (1.0, [1, 3])}


def kl_distribution(results: Results) -> Figure:
    """Histograms of per-position KL on a log axis, a row a method, with percentiles marked."""
    measured = {}
    for cell in results.cells:
        rows = read_parquet(cell.folder / "divergence.parquet", ["category", "kl_nats"])
        measured[cell.name_of_kl] = rows.loc[rows["category"] != TEXT_CATEGORY, "kl_nats"].to_numpy()
    kls = {method: kl.clip(min=KL_FLOOR) for method, kl in measured.items()}  # as drawn: 0 has no place on the axis
    lowest, highest = min(k.min() for k in kls.values()), max(k.max() for k in kls.values())
    edges = numpy.geomspace(lowest / 1.2, highest * 1.2, BINS + 1)
    shares = {method: 100 * numpy.histogram(kl, edges)[0] / len(kl) for method, kl in kls.items()}
    quantiles = {
        method: {name: float(numpy.quantile(kl, q)) for name, (q, _) in QUANTILES.items()}
        for method, kl in measured.items()
    }
    axis = {"values": log_ticks(edges[0], edges[-1]), "grid": True}
    title, scale = "KL of a position, nats (logarithmic)", altair.Scale(type="log", domain=[edges[0], edges[-1]])
    x = altair.X("from:Q", title=title, scale=scale)
    above = x.axis(altair.Axis(labels=False, title=None, **axis))
    last = x.axis(altair.Axis(format=".0e", **axis))
    tallest = max((share.max() for share in shares.values() if share.max() < ALL_EQUAL), default=100)
    height = altair.Y("share:Q", title="% of positions", axis=altair.Axis(tickCount=3))
    dashes = altair.Scale(domain=list(QUANTILES), range=[dash for _, dash in QUANTILES.values()])
    panels = []
    for i, (method, share) in enumerate(shares.items()):
        histogram = pandas.DataFrame({"from": edges[:-1], "to": edges[1:], "share": share})
        bars = altair.Chart(histogram[share > 0]).mark_rect(opacity=0.75, stroke=None)
        bars = bars.encode(
            x=last if method == list(shares)[-1] else above,
            x2="to:Q",
            y=height.scale(altair.Scale(domain=[0, 1.25 * max(tallest, share.max())])),
            y2=altair.Y2Datum(0),
            color=altair.value(COLOURS[i % len(COLOURS)]),
        )
        marks = pandas.DataFrame({"quantile": list(QUANTILES), "kl": list(quantiles[method].values())})
        marks["kl"] = marks["kl"].clip(lower=KL_FLOOR)
        lines = altair.Chart(marks).mark_rule(color=INK, strokeWidth=1.3)
        lines = lines.encode(x="kl:Q", strokeDash=altair.StrokeDash("quantile:N", scale=dashes, legend=None))
        said = " · ".join(f"{name} {number(kl)}" for name, kl in quantiles[method].items())
        title = altair.TitleParams(method, subtitle=f"{said} nats", fontSize=12, subtitleFontSize=11, offset=4)
        panels.append(altair.layer(bars, lines).properties(width=620, height=76, title=title))
    told = [
        f"{method} {name}: {number(kl[name])}"
        for method, kl in quantiles.items()
        for name in ("median", "99 %", "largest")
    ]
    return figure_of(
        "kl-distribution",
        altair.vconcat(*panels, spacing=10),
        f"Histograms of the KL of single positions in nats, one for each method. {'; '.join(told)}.",
        f"All {results.baseline.divergence['positions']:,} positions of the prompts. Vertical lines: median (solid), "
        "90th (dashed) and 99th percentile (dotted), largest (sparse). The baseline's row is the noise floor. Values "
        f"below {number(KL_FLOOR)} nats are drawn at that value.",
    )


def bins_of(cell: Cell, key: str) -> list[KlOfBin]:
    """Bins of perplexity.json; none where the cell was not compared along the text."""
    record: Mapping[str, Any] = cell.perplexity
    return record.get(key) or []


def text_divergence_chart(results: Results) -> Figure:
    """KL on the text by the position in the window, and by the baseline's probability of its own first choice."""
    compared = [cell for cell in results.believed_methods if cell.perplexity.get("kl_by_position")]
    if not compared:
        words = "No method was compared with the baseline along the text."
        return figure_of("text-divergence", nothing_to_show(words), words, words)
    marks = marked(names_of_kl(results), legend=altair.Legend(values=[cell.name_of_kl for cell in compared]))

    def panel(key: str, title: str, middle: Callable[[float, float], float], scale, **axis) -> altair.LayerChart:
        rows = [
            entry(cell, one["kl_nats_mean"], one["ci95"], method=cell.name_of_kl, at=middle(one["low"], one["high"]))
            for cell in compared
            for one in bins_of(cell, key)
        ]
        y = altair.Y("value:Q", title="Mean KL, nats")
        base = altair.Chart(pandas.DataFrame(rows)).encode(x=altair.X("at:Q", title=title, scale=scale, **axis))
        rules, points = on_intervals(base, "y", marks, 1.4, 55, title="Mean KL, nats")
        line = base.mark_line(strokeWidth=1.2).encode(y=y, color=marks["color"])
        faint = rules.mark_rule(strokeWidth=1.4, opacity=0.7)
        return altair.layer(faint, line, points).properties(width=330, height=240)

    ticks = altair.Axis(values=log_ticks(1, max(one["high"] for one in bins_of(compared[0], "kl_by_position"))))
    by_place = panel(
        "kl_by_position",
        "Position in the window (logarithmic)",
        lambda a, b: (a * b) ** 0.5,
        altair.Scale(type="log"),
        axis=ticks,
    )
    by_confidence = panel(
        "kl_by_baseline_top1_p",
        "Baseline's probability of its first choice",
        lambda a, b: (a + b) / 2,
        altair.Scale(domain=[0, 1]),
    )
    told = []
    for cell in compared:
        least, most = (bins_of(cell, "kl_by_baseline_top1_p")[i]["kl_nats_mean"] for i in (0, -1))
        last = bins_of(cell, "kl_by_position")[-1]["kl_nats_mean"]
        told.append(
            f"{cell.name_of_kl}: {number(last)} nats at the end of a window; {number(least)} where the baseline is "
            f"least sure, {number(most)} where it is surest"
        )
    return figure_of(
        "text-divergence",
        altair.hconcat(by_place, by_confidence, spacing=40),
        f"Two line charts of mean KL on the text. {'; '.join(told)}.",
        "Points are means of the positions of a bin, bars 95 % intervals over windows. Left: each bin is twice as long "
        f"as the one before. Right: tenths of the baseline's own confidence.{left_out(results)}",
    )
