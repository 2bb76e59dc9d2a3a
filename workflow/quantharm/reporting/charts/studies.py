"""Charts of what runs beside the default run: weight noise, calibration samples, the monitor."""

from typing import Any

import altair
import pandas

from quantharm.reporting.charts.base import COLOURS, INK, MUTED, Figure, log_ticks, method_scales


def noise_chart(rows: list[dict[str, Any]]) -> Figure:
    """Three panels over σ, a colour a method: what it costs alone and quantized, and what it changes."""
    scales = method_scales(list(dict.fromkeys(row["method"] for row in rows)))
    panels = []
    for title, keys in {
        "Perplexity, change in %": ("alone_perplexity_change_percent", "quantized_perplexity_change_percent"),
        "Mean KL, nats": ("alone_kl_nats_mean", "quantized_kl_nats_mean"),
        "Codes changed, %": (None, "codes_changed"),
    }.items():
        points = [
            {
                "sigma": row["sigma_half_widths"],
                "value": row[key] * (100 if key == "codes_changed" else 1),
                "method": row["method"],
                "weights": name,
            }
            for row in rows
            for name, key in zip(("noise alone, not quantized", "noise, then quantized"), keys, strict=True)
            if key and row[key] is not None
        ]
        base = altair.Chart(pandas.DataFrame(points)).encode(
            x=altair.X("sigma:Q", title="σ, half-widths"),
            y=altair.Y("value:Q", title=title),
            color=altair.Color("method:N", scale=scales["colour"]),
        )
        weights = altair.StrokeDash(
            "weights:N",
            legend=altair.Legend(symbolType="stroke", symbolStrokeColor=INK, symbolStrokeWidth=2, symbolSize=250),
            scale=altair.Scale(domain=["noise, then quantized", "noise alone, not quantized"], range=[[1, 0], [4, 4]]),
        )
        lines = base.mark_line().encode(strokeDash=weights)
        marks = base.mark_point(filled=True, size=50, opacity=1).encode(
            shape=altair.Shape("method:N", scale=scales["shape"])
        )
        panels.append((lines + marks).properties(width=230, height=220))
    words = "Change of perplexity, KL divergence and share of changed codes by the noise's standard deviation."
    return Figure("noise", "Weight noise before quantization", altair.hconcat(*panels), words)


def calibration_chart(rows: list[dict[str, Any]], defaults: dict[str, float]) -> Figure:
    """Mean KL of each cell, a line of points for each kind of samples; below, the methods of the default run."""
    points = [
        {
            "samples": f"{row['method']}: {row['text'] or row['corruption'].replace('_', ' ')}",
            "kl": row["quantized_kl_nats_mean"],
            "checks": "noticed by the checks" if row["faults"] else "not noticed",
        }
        for row in rows
    ]
    points += [{"samples": name, "kl": kl, "checks": "of the default run"} for name, kl in defaults.items()]
    found = [point["kl"] for point in points]
    kinds = ["not noticed", "noticed by the checks", "of the default run"]
    scales = method_scales(kinds)
    chart = (
        altair.Chart(pandas.DataFrame(points))
        .mark_point(size=80, opacity=0.8)
        .encode(
            x=altair.X(
                "kl:Q",
                title="Mean KL, nats (logarithmic)",
                scale=altair.Scale(type="log"),
                axis=altair.Axis(values=log_ticks(min(found) / 2, max(found) * 2), format="~g"),
            ),
            y=altair.Y("samples:N", title=None, sort=None, axis=altair.Axis(minExtent=150)),
            color=altair.Color("checks:N", scale=scales["colour"]),
            shape=altair.Shape("checks:N", scale=scales["shape"]),
        )
        .properties(width=520, height=altair.Step(30))
    )
    words = "Mean KL divergence by calibration text and seed, beside the methods of the default run."
    return Figure("calibration", "Choice of calibration samples", chart, words)


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
