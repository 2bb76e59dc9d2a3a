"""The report over all models: one row a model × method, and charts in which models stand side by side.

Perplexities of different models or protocols are never compared; their changes from each model's own baseline are.
Times stand side by side only where all models ran on one device.
"""

import altair
import pandas

from quantharm.reporting.assessment import Assessment
from quantharm.reporting.charts.base import (
    MUTED,
    Figure,
    ends,
    log_ticks,
    method_scales,
    named,
    nothing_to_show,
)
from quantharm.reporting.format import fixed, listing, number, percent, size
from quantharm.reporting.names import OVERVIEW_FIGURES
from quantharm.reporting.results import Results, ran_on_one_device
from quantharm.reporting.risks import criteria, risks
from quantharm.reporting.tables.table import Cell, Column, Table, figure_cell, name_cell, text_cell, verdict_cell

MODEL = Column("model", "Model", "left")
METHOD = Column("method", "Method", "left")
Models = list[tuple[Results, list[Assessment]]]


def methods_of(models: Models) -> list[str]:
    return list(dict.fromkeys(cell.method for results, _ in models for cell in results.methods))


def overview_table(models: Models) -> Table:
    one_device = ran_on_one_device([results for results, _ in models])
    rows = []
    for results, assessments in models:
        words = {a.method: a for a in assessments}
        first = results.baseline.row
        where = first["perplexity_protocol"] + ("" if one_device else f", {results.device}")
        where += ", synthetic weights" if results.synthetic else ""
        for cell in results.cells:
            row, found = cell.row, words.get(cell.method)
            own = found is None
            rows.append(
                [
                    Cell(results.model, results.model, aside=where, header=True),
                    name_cell(cell.method, cell.failed),
                    text_cell("no" if cell.failed else "yes", "fail" if cell.failed else "pass"),
                    text_cell("reference") if own else verdict_cell(found.harm),
                    text_cell("–")
                    if own
                    else figure_cell(row["perplexity_change_percent"], percent, row["perplexity_change_percent_ci95"]),
                    figure_cell(
                        row["kl_nats_mean"], number, None if own else row["kl_nats_ci95"], "noise floor" if own else ""
                    ),
                    Cell(size(row["weight_bytes"]), row["weight_bytes"]),
                    figure_cell(row["compression"], lambda v: f"{fixed(v, 2)}×"),
                    text_cell("–") if own else figure_cell(cell.decode_change[0], lambda v: percent(v, 0)),
                    *(
                        [figure_cell(row["decode_tokens_per_second_median"], lambda v: fixed(v, 1))]
                        if one_device
                        else []
                    ),
                ]
            )
    columns = [
        MODEL,
        METHOD,
        Column("believable", "May it be believed?", "left"),
        Column("harm", "Harm", "left"),
        Column("perplexity_change_percent", "Perplexity change [95\u00a0%]"),
        Column("kl_nats_mean", "Mean KL, nats [95\u00a0%]"),
        Column("weight_bytes", "Weights loaded"),
        Column("compression", "Smaller by"),
        Column("decode_change_percent", "Decode rate"),
        *([Column("decode_tokens_per_second", "Decode, tokens/s")] if one_device else []),
    ]
    note = (
        "Every change is from the same model's own baseline."
        if one_device
        else "Every change is from the same model's own baseline. The models ran on different devices, so their times "
        "are not shown side by side."
    )
    return Table("overview", "All models and methods", columns, rows, note)


def matrix(models: Models, key: str, title: str, corner: Column, entries) -> Table:
    """Rows: what `entries` names for each model; columns: methods; a field is a verdict."""
    methods = methods_of(models)
    rows = []
    for results, assessments in models:
        for name, verdicts in entries(results, assessments).items():
            failed = {cell.method for cell in results.cells if cell.failed}
            cells = [
                text_cell("–")
                if m not in verdicts
                else text_cell("not judged: failed checks", "failed")
                if m in failed
                else verdict_cell(verdicts[m], True)
                for m in methods
            ]
            first = [Cell(results.model, results.model, header=True)]
            rows.append([*first, *([text_cell(name)] if name else []), *cells])
    columns = [MODEL, *([corner] if corner.key else []), *[Column(f"verdict/{m}", m, "left") for m in methods]]
    return Table(key, title, columns, rows)


def overview_tables(models: Models, thresholds: dict) -> list[Table]:
    def harms(results, assessments):
        return {"": {a.method: a.harm for a in assessments}}

    def turned(verdicts_of):
        def entries(results, assessments):
            by_method = {cell.method: verdicts_of(cell, thresholds) for cell in results.methods}
            names = dict.fromkeys(name for verdicts in by_method.values() for name in verdicts)
            return {name: {m: verdicts[name] for m, verdicts in by_method.items()} for name in names}

        return entries

    return [
        overview_table(models),
        matrix(models, "overview-harm", "Harm, model by method", Column("", ""), harms),
        matrix(
            models, "overview-defense", "Defense criteria", Column("criterion", "Criterion", "left"), turned(criteria)
        ),
        matrix(
            models, "overview-risk", "Deployment risks", Column("application", "Application", "left"), turned(risks)
        ),
    ]


def frame(models: Models) -> pandas.DataFrame:
    rows = []
    for results, _ in models:
        for cell in [] if results.synthetic else results.believed[1:]:
            row = cell.row
            change, bounds = row["perplexity_change_percent"], row["perplexity_change_percent_ci95"]
            low_high = ends(row["kl_nats_ci95"], row["kl_nats_mean"])
            rows.append(
                {"model": results.model, "method": named(cell), "change": change, "compression": row["compression"]}
                | {"kl": row["kl_nats_mean"], "kl_low": low_high["low"], "kl_high": low_high["high"]}
                | ends(bounds, change)
            )
    columns = ["model", "method", "change", "compression", "kl", "kl_low", "kl_high", "low", "high"]
    return pandas.DataFrame(rows, columns=columns)


def dots(data: pandas.DataFrame, figure: str, low: str, high: str, title: str, models: list[str], methods: list[str]):
    """A row a method within a panel a model; axes are shared, so panels compare."""
    marks = method_scales(["baseline", *methods])
    base = altair.Chart(data)
    y = altair.Y("method:N", sort=methods, title=None)
    colour = altair.Color("method:N", scale=marks["colour"], legend=None)
    rules = base.mark_rule(strokeWidth=2).encode(y=y, x=altair.X(f"{low}:Q", title=title), x2=f"{high}:Q", color=colour)
    points = base.mark_point(filled=True, size=100, opacity=1).encode(
        y=y,
        x=altair.X(f"{figure}:Q", title=title),
        color=colour,
        shape=altair.Shape("method:N", scale=marks["shape"], legend=None),
    )
    zero = base.mark_rule(color=MUTED).encode(x=altair.datum(0))
    header = altair.Header(title=None, labelOrient="top", labelAnchor="start", labelFontWeight="bold")
    return (
        altair.layer(zero, rules, points)
        .properties(width=620, height=28 * max(1, len(methods)))
        .facet(row=altair.Row("model:N", sort=models, header=header), spacing=14)
    )


def overview_figures(models: Models) -> list[Figure]:
    data = frame(models)
    if not len(data):
        words = "No method but the baseline was run on weights that are not synthetic, and passed its checks."
        return [Figure(key, title, nothing_to_show(words), words) for key, title in OVERVIEW_FIGURES.items()]
    names = [results.model for results, _ in models]
    methods = list(dict.fromkeys(data["method"]))
    told = [f"{r.model} {r.method}: perplexity {percent(r.change)}, KL {number(r.kl)} nats" for r in data.itertuples()]
    failed = [f"{results.model} × {cell.method}" for results, _ in models for cell in results.cells if cell.failed]
    out = f" Left out, since they failed checks: {listing(failed)}." if failed else ""
    said = f"{'; '.join(told)}."
    marks = method_scales(["baseline", *methods])
    y = altair.Y(
        "kl:Q",
        title="Mean KL, nats (logarithmic)",
        scale=altair.Scale(type="log", padding=14),
        axis=altair.Axis(values=log_ticks(data["kl"].min() / 2, data["kl"].max() * 2), format="~g"),
    )
    points = (
        altair.Chart(data)
        .mark_point(filled=True, size=110, opacity=0.95)
        .encode(
            x=altair.X("compression:Q", title="Smaller by, ×", scale=altair.Scale(domainMin=1, padding=14)),
            y=y,
            color=altair.Color("method:N", scale=marks["colour"]).legend(values=methods),
            shape=altair.Shape("method:N", scale=marks["shape"]).legend(values=methods),
        )
        .properties(width=200, height=220)
        .facet(altair.Facet("model:N", sort=names, header=altair.Header(title=None, labelFontWeight="bold")), columns=3)
    )
    figures = {
        "overview-perplexity": (
            dots(data, "change", "low", "high", "Perplexity change, % (paired, with 95 % intervals)", names, methods),
            f"Changes from each model's own baseline; a bar that touches zero is no measurable change.{out}",
        ),
        "overview-divergence": (
            dots(data, "kl", "kl_low", "kl_high", "Mean KL, nats, with 95 % intervals", names, methods),
            f"The same scale for every model; further left is closer to its own baseline.{out}",
        ),
        "overview-quality-against-size": (
            points,
            f"A panel for each model: {listing(names)}. Lower and further right is better.{out}",
        ),
    }
    return [
        Figure(key, OVERVIEW_FIGURES[key], chart, f"{OVERVIEW_FIGURES[key]}. {said}", caption)
        for key, (chart, caption) in figures.items()
    ]
