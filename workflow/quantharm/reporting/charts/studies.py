"""Charts of what runs beside the default run: weight noise, calibration samples, the monitor."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair
import pandas

from quantharm.reporting.charts.base import COLOURS, INK, KL_FLOOR, MUTED, Figure, log_ticks
from quantharm.reporting.charts.marks import marked


def noise_chart(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Three panels over σ, a colour a method: what it costs alone and quantized, and what it changes."""
    kinds = {"noise, then quantized": [1, 0], "noise alone, not quantized": [4, 4]}
    legend = altair.Legend(symbolType="stroke", symbolStrokeColor=INK, symbolStrokeWidth=2, symbolSize=250)
    scale = altair.Scale(domain=list(kinds), range=list(kinds.values()))
    weights = altair.StrokeDash("weights:N", legend=legend, scale=scale)
    marks = marked(list(dict.fromkeys(row["method"] for row in rows)), legend=altair.Undefined)

    def panel(title: str, alone: str | None, quantized: str, scale: float = 1) -> altair.LayerChart:
        points = [
            {"sigma": row["sigma_half_widths"], "value": row[key] * scale, "method": row["method"], "weights": kind}
            for row in rows
            for kind, key in zip(reversed(kinds), (alone, quantized), strict=True)
            if key and row[key] is not None
        ]
        base = altair.Chart(pandas.DataFrame(points)).encode(
            x=altair.X("sigma:Q", title="σ, half steps"), y=altair.Y("value:Q", title=title), color=marks["color"]
        )
        dots = base.mark_point(filled=True, size=50, opacity=1).encode(shape=marks["shape"])
        return (base.mark_line().encode(strokeDash=weights) + dots).properties(width=230, height=220)

    change, kl = "perplexity_change_percent", "kl_nats_mean"
    panels = [
        panel("Perplexity, change in %", f"alone_{change}", f"quantized_{change}"),
        panel("Mean KL, nats", f"alone_{kl}", f"quantized_{kl}"),
        panel("Codes changed, %", None, "codes_changed", 100),
    ]
    words = "Change of perplexity, KL divergence and share of changed codes by the noise's standard deviation."
    return Figure("noise", "Weight noise before quantization", altair.hconcat(*panels), words)


def calibration_chart(rows: Sequence[Mapping[str, Any]], defaults: dict[str, float]) -> Figure:
    """Mean KL of each cell, a line of points for each kind of samples; below, the methods of the default run."""
    points = [
        {
            "samples": f"{row['method']}: {row['text'] or row['corruption'].replace('_', ' ')}",
            "kl": max(KL_FLOOR, row["quantized_kl_nats_mean"]),
            "checks": "noticed by the checks" if row["faults"] else "not noticed",
        }
        for row in rows
    ]
    points += [
        {"samples": name, "kl": max(KL_FLOOR, kl), "checks": "of the default run"} for name, kl in defaults.items()
    ]
    entries = pandas.DataFrame(points)
    ticks = altair.Axis(values=log_ticks(entries["kl"].min() / 2, entries["kl"].max() * 2), format="~g")
    title = "Mean KL, nats (logarithmic)"
    kinds = ["not noticed", "noticed by the checks", "of the default run"]
    chart = altair.Chart(entries).mark_point(size=80, opacity=0.8)
    chart = chart.encode(
        x=altair.X("kl:Q", title=title, scale=altair.Scale(type="log"), axis=ticks),
        y=altair.Y("samples:N", title=None, sort=None, axis=altair.Axis(minExtent=150)),
        **marked(kinds, "checks", legend=altair.Undefined),
    )
    words = "Mean KL divergence by calibration text and seed, beside the methods of the default run."
    sized = chart.properties(width=520, height=altair.Step(30))
    return Figure("calibration", "Choice of calibration samples", sized, words)


def monitor_chart(history: pandas.DataFrame, what: str) -> Figure:
    """Each run's figure, the EWMA and its limits; alarms are marked by shape and colour. history: a row a run."""
    table = history[["run", "kl_nats", "ewma", "low", "high", "alarm"]]
    last = int(table["run"].max())
    ticks = [run for run in range(1, last + 1) if run % -(-last // 12) == 0 or last <= 12]
    x = altair.X("run:Q", title="run", axis=altair.Axis(values=ticks, format="d"))
    base = altair.Chart(table)
    low, high = table[["low", "kl_nats", "ewma"]].min(axis=None), table[["high", "kl_nats", "ewma"]].max(axis=None)
    # A swapped checkpoint is often ten times as far from the baseline: limits and alarm show together on such a scale.
    scale = altair.Scale(type="log" if 0 < low < high / 10 else "linear", zero=False, nice=False, padding=10)
    limits = base.mark_area(opacity=0.15, color=COLOURS[0]).encode(
        x=x, y=altair.Y("low:Q", title="KL, nats", scale=scale, axis=altair.Axis(format="~g")), y2="high:Q"
    )
    mean = table[["low", "high"]].iloc[-1].mean()  # limits lie on both sides of it alike
    middle = altair.Chart(pandas.DataFrame({"mean": [mean]})).mark_rule(color=MUTED).encode(y="mean:Q")
    single = base.mark_point(color=MUTED, size=18).encode(x=x, y="kl_nats:Q")
    line = base.mark_line(color=COLOURS[0]).encode(x=x, y="ewma:Q")
    alarms = base.transform_filter("datum.alarm").mark_point(shape="cross", size=110, filled=True, color=COLOURS[1])
    chart = (limits + middle + single + line + alarms.encode(x=x, y="ewma:Q")).properties(width=640, height=260)
    title = f"{what}: KL of the deployed checkpoint, run by run"
    words = f"{title}: points are single runs, the line is their EWMA, the band its limits, crosses are alarms."
    return Figure("chart", title, chart, words, "Points: single runs. Line: EWMA. Band: its limits. Crosses: alarms.")
