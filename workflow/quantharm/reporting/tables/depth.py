"""Tables of long answers: how they end, and KL divergence by depth."""

from typing import Any

from quantharm.common.answers import EARLY, FEWEST_CYCLES, LONG_TOKENS, SHORTEST_LOOP
from quantharm.common.records.divergence import DepthBin
from quantharm.reporting.format import one_decimal, share
from quantharm.reporting.results import Cell, Results
from quantharm.reporting.tables.columns import METHOD, figure, first_difference, kl_by_method, named
from quantharm.reporting.tables.table import Column, Table, table_of

Depths = list[DepthBin]


def long_answers_table(results: Results) -> Table:
    """Answers that loop, that do not end, that end early, and where they part from the baseline's."""

    def counted(key: str, label: str, **more: Any) -> Column:
        prompts = results.baseline.row["prompts"]
        return figure(key, label, lambda many: f"{many} of {prompts}", **more)

    def points(value: float) -> str:
        return share(value, 0)

    def change(key: str, label: str) -> Column:
        return figure(key, label, points, bounds=f"{key}_ci95", baseline="–")

    columns = [
        METHOD,
        counted("answers_looping", "End in a loop"),
        change("answers_looping_added_share", "More than the baseline's [95\u00a0%]"),
        figure("loop_start_token_median", "Loop begins at token, median", one_decimal),
        counted("answers_cut_off", "Do not end"),
        change("answers_cut_off_added_share", "More than the baseline's [95\u00a0%]"),
        counted("answers_ended_early", "End much sooner", baseline="–"),
        first_difference("First differing token, median [95\u00a0%]", "first_difference_ci95"),
    ]
    longest = results.baseline.row["max_new_tokens"]
    note = (
        f"A loop is an answer's end in which one cycle occurs at least {FEWEST_CYCLES} times in a row, over at least "
        f"{SHORTEST_LOOP} tokens. Much sooner: it ends by itself with less than {share(EARLY)} of the tokens of the "
        f"baseline's answer. Answers have at most {longest:,} tokens"
    )
    if longest < LONG_TOKENS:
        note += f"; loops and endings show in those of {LONG_TOKENS:,} (protocol `long`)"
    return table_of("long-answers", columns, results.cells, f"{note}.")


def depths_of(cell: Cell) -> Depths:
    """`by_depth` of divergence.json; empty for records of earlier versions."""
    return list(cell.divergence.get("by_depth") or [])


def span(depth: DepthBin) -> str:
    """`16 to 31`"""
    return f"{depth['from_tokens']:,} to {depth['to_tokens'] - 1:,}"


def divergence_by_depth_table(results: Results) -> Table:
    """Rows are depths; the prompts whose answers are that long are the same for every method."""

    def same(cell: Cell, depth: DepthBin) -> DepthBin | None:
        return next((d for d in depths_of(cell) if d["from_tokens"] == depth["from_tokens"]), None)

    columns = [
        named("depth_tokens", "Tokens of the answer before", span),
        figure("prompts", "Prompts", str),
        figure("positions", "Positions", lambda many: f"{many:,}"),
        *kl_by_method(results.methods, same),
    ]
    note = (
        "Mean KL over the baseline's own answers, which every method is scored on. Deeper rows hold only the "
        "prompts whose answers are that long, so rows differ in their prompts, too."
    )
    return table_of("divergence-by-depth", columns, depths_of(results.baseline), note)
