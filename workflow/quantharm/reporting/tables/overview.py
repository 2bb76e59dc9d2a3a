"""Tables over all models: a row a model × method, and the verdicts on each model by method.

Perplexities of different models or protocols are never compared; their changes from each model's own baseline are.
Times stand side by side only where all models ran on one device.
"""

from functools import partial

from quantharm.common.provenance import computed_differently
from quantharm.reporting.format import one_decimal, size, times, whole_percent
from quantharm.reporting.judgement import believed, judge_all
from quantharm.reporting.results import Cell, Results
from quantharm.reporting.risks import criteria, risks
from quantharm.reporting.tables.columns import METHOD, figure, mean_kl, named, perplexity_change, text, verdict
from quantharm.reporting.tables.table import Column, Field, Table, table_of, text_field, verdict_field
from quantharm.reporting.verdicts import Verdict


def overview_tables(models: list[Results]) -> list[Table]:
    harms = [(results, {"": {m: j.harm for m, j in judge_all(results).items()}}) for results in models]
    return [
        overview_table(models),
        verdict_table("overview-harm", models, harms),
        verdict_table("overview-defense", models, turned(models, criteria), "criterion"),
        verdict_table("overview-risk", models, turned(models, risks), "application"),
    ]


def ran_on_one_device(models: list[Results]) -> bool:
    """Whether the times of several models may stand side by side."""
    ran = [results.baseline.generation["provenance"] for results in models]
    same = not any(computed_differently(other, ran[0]).keys() - {"dtype", "compute_dtype"} for other in ran[1:])
    return same and len({results.device for results in models}) == 1


def overview_table(models: list[Results]) -> Table:
    one_device = ran_on_one_device(models)
    of = {results.model: results for results in models}
    judged = {results.model: judge_all(results) for results in models}

    def model(cell: Cell) -> Field:
        results = of[cell.row["model"]]
        where = [results.baseline.row["perplexity_protocol"]]
        where += [results.device] * (not one_device) + ["synthetic weights"] * results.synthetic
        return Field(results.model, results.model, aside=", ".join(where), header=True)

    def believable(cell: Cell) -> Field:
        return text_field("no", "fail") if cell.failed else text_field("yes", "pass")

    columns = [
        Column("model", "Model", "left", model),
        METHOD,
        Column("believable", "Checks passed", "left", believable),
        verdict("harm", "Harm", lambda cell: judged[cell.row["model"]][cell.method].harm, baseline="reference"),
        perplexity_change(),
        mean_kl(),
        figure("weight_bytes", "Weights loaded", size),
        figure("compression", "Smaller by", times),
        figure("decode_change_percent", "Decode rate", whole_percent, lambda c: c.decode_change[0], baseline="–"),
    ]
    note = "Every change is from the same model's own baseline."
    if one_device:
        columns.append(
            figure("decode_tokens_per_second", "Decode, tokens/s", one_decimal, "decode_tokens_per_second_median")
        )
    else:
        note += " The models ran on different devices, so their times are not shown side by side."
    return table_of("overview", columns, [cell for results in models for cell in results.cells], note)


Verdicts = dict[str, dict[str, Verdict]]  # what was judged → method → verdict


def turned(models: list[Results], verdicts_of) -> list[tuple[Results, Verdicts]]:
    """The verdicts on each model, by what was judged; verdicts_of: {what was judged: verdict} of a method's cell."""
    made = []
    for results in models:
        judged = {cell.method: verdicts_of(cell, results.thresholds) for cell in results.methods}
        names = dict.fromkeys(name for verdicts in judged.values() for name in verdicts)
        made.append((results, {name: {m: verdicts[name] for m, verdicts in judged.items()} for name in names}))
    return made


def verdict_table(
    key: str, models: list[Results], judged: list[tuple[Results, Verdicts]], judged_by: str = ""
) -> Table:
    """A row for each thing that was judged of each model, a column a method; judged_by: what these things are."""
    rows = [(results, name, verdicts) for results, of in judged for name, verdicts in of.items()]

    def judged_field(row: tuple, method: str) -> Field:
        results, _, verdicts = row
        if method not in verdicts:
            return text_field("–")
        cell = next(cell for cell in results.cells if cell.method == method)
        return verdict_field(believed(cell, verdicts[method]), True)

    columns = [named("model", "Model", lambda row: row[0].model)]
    if judged_by:
        columns.append(text(judged_by, judged_by.capitalize(), lambda row: row[1]))
    for method in dict.fromkeys(cell.method for results in models for cell in results.methods):
        columns.append(Column(f"verdict/{method}", method, "left", partial(judged_field, method=method)))
    return table_of(key, columns, rows)
