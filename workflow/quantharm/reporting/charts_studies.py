"""Charts of the studies that run beside the default run: weight noise, calibration samples."""

from typing import Any

import altair
import pandas

from quantharm.reporting.chart_base import Figure, method_scales


def noise_chart(rows: list[dict[str, Any]]) -> Figure:
    """Three panels over σ, a colour a method: what it costs in 16 bits and quantized, and what it changes."""
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
            for name, key in zip(("noise alone, 16 bits", "noise, then quantized"), keys, strict=True)
            if key and row[key] is not None
        ]
        panels.append(
            altair.Chart(pandas.DataFrame(points))
            .mark_line(point=altair.OverlayMarkDef(size=50))
            .encode(
                x=altair.X("sigma:Q", title="σ, half-widths"),
                y=altair.Y("value:Q", title=title),
                color=altair.Color("method:N", scale=scales["colour"]),
                shape=altair.Shape("method:N", scale=scales["shape"]),
                strokeDash=altair.StrokeDash(
                    "weights:N",
                    legend=altair.Legend(symbolType="stroke"),
                    scale=altair.Scale(
                        domain=["noise, then quantized", "noise alone, 16 bits"], range=[[1, 0], [4, 4]]
                    ),
                ),
            )
            .properties(width=230, height=220)
        )
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
    kinds = ["not noticed", "noticed by the checks", "of the default run"]
    scales = method_scales(kinds)
    chart = (
        altair.Chart(pandas.DataFrame(points))
        .mark_point(size=80, opacity=0.8)
        .encode(
            x=altair.X("kl:Q", title="Mean KL, nats (logarithmic)", scale=altair.Scale(type="log")),
            y=altair.Y("samples:N", title=None, sort=None),
            color=altair.Color("checks:N", scale=scales["colour"]),
            shape=altair.Shape("checks:N", scale=scales["shape"]),
        )
        .properties(width=520, height=altair.Step(30))
    )
    words = "Mean KL divergence by calibration text and seed, beside the methods of the default run."
    return Figure("calibration", "Choice of calibration samples", chart, words)
