"""Charts over all models: a panel a model, every method as its change from that model's own baseline."""

import altair
import pandas

from quantharm.reporting.charts.base import KL_FLOOR, MUTED, Figure, figure_of, log_ticks, nothing_to_show
from quantharm.reporting.charts.marks import dots, entry, entry_of, marked
from quantharm.reporting.format import listing, mean_kl, percent
from quantharm.reporting.names import OVERVIEW_FIGURES
from quantharm.reporting.results import Results


def overview_figures(models: list[Results]) -> list[Figure]:
    judged = [cell for results in models if not results.synthetic for cell in results.believed_methods]
    if not judged:
        words = "No method but the baseline was run on weights that are not synthetic, and passed its checks."
        return [figure_of(key, nothing_to_show(words), words, "") for key in OVERVIEW_FIGURES]
    names = [results.model for results in models]
    methods = list(dict.fromkeys(cell.method for cell in judged))
    marks = {"legend": altair.Legend(values=methods)}
    label = altair.Header(title=None, labelFontWeight="bold")

    def panels(figure: str, title: str) -> altair.FacetChart:
        """A row a method within a panel a model; axes are shared, so panels compare."""
        entries = pandas.DataFrame([entry_of(cell, figure, model=cell.row["model"]) for cell in judged])
        zero = altair.Chart(entries).mark_rule(color=MUTED).encode(x=altair.datum(0))
        layers = dots(entries, methods, marked(["baseline", *methods]), title=title)
        header = altair.Header(title=None, labelOrient="top", labelAnchor="start", labelFontWeight="bold")
        row = altair.Row("model:N", sort=names, header=header)
        chart = altair.layer(zero, *layers).properties(width=620, height=28 * len(methods))
        return chart.facet(row=row, spacing=14)

    def against_size() -> altair.FacetChart | altair.Chart:
        rows = [
            entry(c, max(KL_FLOOR, c.row["kl_nats_mean"]), model=c.row["model"], compression=c.row["compression"])
            for c in judged
            if not c.served
        ]
        if not rows:
            return nothing_to_show("All methods are behind addresses, where their sizes are not seen.")
        entries = pandas.DataFrame(rows)
        ticks = altair.Axis(values=log_ticks(entries["value"].min() / 2, entries["value"].max() * 2), format="~g")
        points = altair.Chart(entries).mark_point(filled=True, size=110, opacity=0.95)
        points = points.encode(
            x=altair.X("compression:Q", title="Smaller by, ×", scale=altair.Scale(domainMin=1, padding=14)),
            y=altair.Y(
                "value:Q", title="Mean KL, nats (logarithmic)", scale=altair.Scale(type="log", padding=14), axis=ticks
            ),
            **marked(["baseline", *methods], **marks),
        )
        facet = altair.Facet("model:N", sort=names, header=label)
        return points.properties(width=200, height=220).facet(facet, columns=3)

    told = [
        f"{c.row['model']} {c.method}: perplexity {percent(c.row['perplexity_change_percent'])}, KL "
        f"{mean_kl(c.row)} nats"
        for c in judged
    ]
    failed = [f"{results.model} × {cell.method}" for results in models for cell in results.cells if cell.failed]
    out = f" Left out, since they failed checks: {listing(failed)}." if failed else ""
    charts = {
        "overview-perplexity": (
            panels("perplexity_change_percent", "Perplexity change, % (paired, with 95 % intervals)"),
            "Changes from each model's own baseline; a bar that touches zero is no measurable change.",
        ),
        "overview-divergence": (
            panels("kl_nats_mean", "Mean KL, nats, with 95 % intervals"),
            "The same scale for every model; further left is closer to its own baseline.",
        ),
        "overview-quality-against-size": (
            against_size(),
            f"A panel for each model: {listing(names)}. Lower and further right is better.",
        ),
    }
    return [
        figure_of(key, chart, f"{OVERVIEW_FIGURES[key]}. {'; '.join(told)}.", f"{caption}{out}")
        for key, (chart, caption) in charts.items()
    ]
