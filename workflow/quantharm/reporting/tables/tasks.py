"""The table of tasks: what each method answers right, beside the baseline, task by task and over all of them."""

from dataclasses import replace
from typing import Any, NamedTuple

from quantharm.common.constants import BASELINE
from quantharm.common.records.tasks import TaskFigures
from quantharm.reporting.format import fixed, number, share_to_a_tenth
from quantharm.reporting.results import Cell, Results
from quantharm.reporting.tables.columns import METHOD, figure, named
from quantharm.reporting.tables.table import Column, Field, Table, figure_field, table_of, text_field

LEVEL = 0.05
OVERALL = "all tasks"


class Answered(NamedTuple):
    """One task as one method answered it."""

    task: str
    cell: Cell
    row: TaskFigures


def answered(results: Results) -> list[Answered]:
    """The methods of a task together; over all tasks last, where there are several."""

    def figures(task: str, cell: Cell) -> TaskFigures | None:
        return cell.row.get("tasks_overall") if task == OVERALL else (cell.row.get("tasks") or {}).get(task)

    names = list(results.baseline.row.get("tasks") or {})
    names += [OVERALL] if len(names) > 1 else []
    return [Answered(task, cell, row) for task in names for cell in results.cells if (row := figures(task, cell))]


def points(change: float) -> str:
    return f"{fixed(100 * change, 1)} points"


def verdict_of(answers: Answered) -> Field:
    """Whether a difference was shown, and where none was, which one would have been."""
    cell, row = answers.cell, answers.row
    if cell.method == BASELINE:
        return text_field("reference")
    if cell.synthetic:
        return text_field("not judged: synthetic weights", "unknown")
    if cell.failed:
        return text_field("not judged: failed checks", "failed")
    if row["mcnemar_p_holm"] < LEVEL:
        worse = (row["flips_right_to_wrong"] or 0) > (row["flips_wrong_to_right"] or 0)
        return text_field(
            "worse than the baseline" if worse else "better than the baseline", "fail" if worse else "pass"
        )
    least = row["smallest_detectable_difference_corrected"]
    if least is None:
        return text_field("too few items to show any difference", "undecided")
    return text_field(f"no difference shown; one of {points(least)} or more would show", "undecided")


def compared(key: str, label: str, **more: Any) -> Column:
    """A figure that the baseline has none of."""
    column = figure(key, label, **more)
    return replace(column, field=lambda a: figure_field(None) if a.cell.method == BASELINE else column.field(a))


def tasks_table(results: Results) -> Table:
    columns = [
        named("task", "Task", lambda answers: answers.task),
        Column("method", "Method", "left", lambda answers: METHOD.field(answers.cell)),
        figure("items", "Items", show="{:,}".format),
        figure("accuracy", "Right [95\u00a0%]", show=share_to_a_tenth, bounds="accuracy_ci95"),
        compared("recovery", "Recovery [95\u00a0%]", show=share_to_a_tenth, bounds="recovery_ci95"),
        compared("flips_right_to_wrong", "Right → wrong", show=str),
        compared("flips_wrong_to_right", "Wrong → right", show=str),
        compared("mcnemar_p_holm", "p, corrected", show=number),
        Column("verdict", "Verdict", "left", verdict_of),
    ]
    note = (
        "Recovery is the accuracy ÷ the baseline's, over the same items. The p-value is of McNemar's "
        "exact test of the flips, corrected for the number of methods and tasks (Holm). The verdict names the "
        "smallest change of accuracy that so many items, with so many flips, show with 80\u00a0% probability: no "
        "smaller one is excluded."
    )
    return table_of("tasks", columns, answered(results), note)
