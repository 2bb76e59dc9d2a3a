"""Tables that sum a run up: the first screen's, harm by method, and all figures side by side."""

from functools import partial

from quantharm.reporting.change_verdicts import change_verdict
from quantharm.reporting.format import (
    fixed,
    number,
    one_decimal,
    percent,
    percent_to_a_tenth,
    share,
    share_to_a_tenth,
    signed,
    size,
    times,
    two_decimals,
    whole_percent,
)
from quantharm.reporting.judgement import Judgement, judge_all, kind_of
from quantharm.reporting.ranking import best_use
from quantharm.reporting.results import Cell, Results
from quantharm.reporting.tables.columns import (
    CHANGE,
    COMPRESSION,
    METHOD,
    figure,
    mean_kl,
    perplexity_change,
    text,
    verdict,
)
from quantharm.reporting.tables.cost import percent_of
from quantharm.reporting.tables.table import Column, Field, Table, table_of, text_field, transposed


def belief(cell: Cell) -> Field:
    """Whether a cell passed its checks."""
    if cell.failed:
        return text_field("no", "fail", f"failed {', '.join(cell.failed)}")
    ran = [check for check in cell.checks["checks"] if check["status"] != "skipped"]
    return text_field("yes", "pass", f"{sum(check['status'] == 'pass' for check in ran)} of {len(ran)} checks")


def executive_table(results: Results) -> Table:
    """The first screen: what each method costs and gains, and whether it may be believed."""
    judged: dict[str, Judgement] = judge_all(results)

    def tone(figure: str):
        return lambda cell: getattr(judged[cell.method], figure).level if cell.method in judged else ""

    def timing(cell: Cell) -> str:
        return "not judged" if judged[cell.method].decode.level == "unknown" else kind_of(cell, results)

    columns = [
        METHOD,
        Column("believable", "Checks passed", "left", belief),
        verdict("harm", "Harm", lambda cell: judged[cell.method].harm, baseline="reference"),
        perplexity_change(baseline="0 %", tone=tone("perplexity")),
        mean_kl(tone("kl")),
        figure("weight_bytes", "Weights loaded", size),
        figure("compression", "Smaller by", times, baseline="–"),
        figure(
            "decode_change_percent",
            "Decode rate [95\u00a0%]",
            whole_percent,
            lambda cell: cell.decode_change,
            aside=timing,
            baseline="reference",
        ),
    ]
    return table_of("executive-summary", columns, results.cells)


def harm_table(results: Results) -> Table:
    """Harm indicators, a row a method."""
    judged = judge_all(results)
    whole = results.baseline.weight_bytes

    def success(cell: Cell) -> str:
        points, bounds = cell.changes["succeeded_points"]
        return change_verdict(points, bounds, "more succeed", "fewer succeed").words

    columns = [
        METHOD,
        verdict("verdict", "Verdict", lambda cell: judged[cell.method].harm),
        figure(CHANGE, "Perplexity change", percent, tone=lambda cell: judged[cell.method].perplexity.level),
        figure("kl_nats_mean", "Mean KL, nats", tone=lambda cell: judged[cell.method].kl.level),
        figure(
            "saved_percent",
            "Memory saved",
            lambda value: f"{fixed(value, 1)}\u00a0%",
            lambda cell: None if cell.served else 100 * cell.saved_bytes / whole,
        ),
        COMPRESSION,
        text("success", "Success", lambda cell: f"{cell.row['succeeded']} of {cell.row['prompts']}", success, "right"),
        text(
            "decode",
            "Decode speed",
            lambda cell: judged[cell.method].decode.words,
            lambda cell: percent(cell.decode_change[0], 1),
        ),
    ]
    return table_of("harm", columns, results.methods)


def overall_table(results: Results) -> Table:
    """A figure a row, a method a column; changes against the baseline in brackets."""
    use = best_use(results, judge_all(results))
    captured = any(cell.row["captured_decode_tokens_per_second_median"] for cell in results.cells)

    def bracketed(change, show=percent_to_a_tenth):
        """change: of a method's cell, None where there is none."""

        def words(cell: Cell) -> str:
            value = None if cell is results.baseline else change(cell)
            return "" if value is None else f"({show(value)})"

        return words

    def ratio(key: str):
        return bracketed(lambda cell: percent_of(cell.figure(key), results.baseline.figure(key)))

    def measured(name: str):
        return lambda cell: cell.changes[name][0] if name in cell.changes else None

    def rate(key: str, label: str, change: str) -> Column:
        return figure(key, label, one_decimal, f"{key}_median", aside=bracketed(measured(change)))

    decode = "Tokens per second, decode benchmark"
    columns = [
        METHOD,
        figure("perplexity", "Perplexity", two_decimals, aside=bracketed(lambda cell: cell.row[CHANGE], percent)),
        figure("kl_nats_mean", "Mean KL, nats"),
        figure("top1_agreement", "Top-1 agreement", share_to_a_tenth),
        figure(
            "seconds_mean",
            "Time per prompt",
            lambda value: f"{number(value)} s",
            aside=bracketed(lambda cell: cell.row["seconds_change_percent"]),
        ),
        figure(
            "new_tokens_mean",
            "Response length",
            lambda value: f"{fixed(value, 1)} tokens",
            aside=bracketed(measured("new_tokens"), partial(signed, decimals=1)),
        ),
        figure("success_share", "Success", share, lambda cell: cell.row["succeeded"] / cell.row["prompts"]),
        figure("weight_bytes", "Weights loaded", size, aside=ratio("weight_bytes")),
        COMPRESSION,
        figure("tokens_per_second", "Tokens per second, prompts", one_decimal, aside=ratio("tokens_per_second")),
        rate("decode_tokens_per_second", f"{decode}{', eager' if captured else ''}", "decode_percent"),
    ]
    if captured:
        columns.append(rate("captured_decode_tokens_per_second", f"{decode}, captured", "captured_decode_percent"))
    columns.append(text("best_use", "Best use", lambda cell: use[cell.method], align="right"))
    table = table_of("overall", columns, results.cells, "In brackets: the change from the baseline.")
    return transposed(table, Column("figure", "Figure", "left"))
