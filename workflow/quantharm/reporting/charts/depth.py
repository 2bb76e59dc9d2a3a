"""Chart of the KL divergence by depth."""

import altair
import pandas

from quantharm.reporting.charts.base import Figure, figure_of, log_ticks, nothing_to_show
from quantharm.reporting.charts.marks import entry, left_out, marked, names_of_kl, on_intervals
from quantharm.reporting.format import number
from quantharm.reporting.results import Results
from quantharm.reporting.tables.depth import depths_of, span


def kl_by_depth_chart(results: Results) -> Figure:
    """A line a method over the tokens of the answer before, with intervals; both axes logarithmic."""
    rows = [
        entry(cell, d["kl_nats_mean"], d["ci95"], method=cell.name_of_kl, depth=span(d))
        for cell in results.believed_methods
        for d in depths_of(cell)
        if d["kl_nats_mean"] > 0
    ]
    if not rows:
        words = "No depth was measured: no method but the baseline passed its checks, or the records are older."
        return figure_of("kl-by-depth", nothing_to_show(words), words, words)
    entries = pandas.DataFrame(rows)
    low, high = entries["low"].clip(lower=entries["value"].min() / 10).min() / 1.2, entries["high"].max() * 1.2
    entries["low"] = entries["low"].clip(lower=low)
    marks = marked(names_of_kl(results), legend=altair.Legend(values=list(dict.fromkeys(entries["method"]))))
    scale = altair.Scale(type="log", domain=[low, high], nice=False)
    ticks = altair.Axis(values=log_ticks(low, high), format="~g")
    depths = [span(depth) for depth in depths_of(results.baseline)]
    x = altair.X("depth:N", sort=depths, title="Tokens of the answer before", axis=altair.Axis(labelAngle=0))
    base = altair.Chart(entries).encode(x=x, xOffset=altair.XOffset("method:N"))
    layers = on_intervals(base, "y", marks, 1.6, 80, title="Mean KL, nats (logarithmic)", scale=scale, axis=ticks)
    at_depth = entries.set_index("method").groupby("depth", sort=False)["value"]
    first, last = (dict(at_depth.get_group(entries["depth"].iloc[i])) for i in (0, -1))
    told = [f"{m} {number(first[m])} nats at first, {number(last[m])} at last" for m in first if m in last]
    return figure_of(
        "kl-by-depth",
        altair.layer(*layers).properties(width=max(320, 78 * entries["depth"].nunique()), height=240),
        f"Mean KL by depth in the answer, a point a method. {'; '.join(told)}.",
        "Mean KL with 95 % intervals over prompts, by the number of the answer's tokens before the predicted one."
        + left_out(results),
    )
