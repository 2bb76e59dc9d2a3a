"""The table of tasks: what each method answers right, beside the baseline, task by task and over all of them."""

from typing import Any

from quantharm.common.constants import BASELINE
from quantharm.reporting.format import fixed, number, share_to_a_tenth
from quantharm.reporting.results import Cell, Results
from quantharm.reporting.tables.columns import figure
from quantharm.reporting.tables.table import Column, Field, Table, figure_field, name_field, table_of, text_field

LEVEL = 0.05
OVERALL = "all tasks"
Answered = dict[str, Any]  # figures of one task and one method (records.tasks.OneTask), with its `task` and its `cell`


def answered(results: Results) -> list[Answered]:
    """A row a task and method, the methods of a task together; over all tasks last, where there are several."""
    names = list(results.baseline.row.get("tasks") or {})
    rows = [
        cell.row["tasks"][task] | {"task": task, "cell": cell}
        for task in names
        for cell in results.cells
        if task in (cell.row.get("tasks") or {})
    ]
    if len(names) > 1:
        rows += [
            cell.row["tasks_overall"] | {"task": OVERALL, "cell": cell}
            for cell in results.cells
            if cell.row.get("tasks_overall")
        ]
    return rows


def points(change: float) -> str:
    return f"{fixed(100 * change, 1)} points"


def verdict_of(row: Answered) -> Field:
    """Whether a difference was shown, and where none was, which one would have been."""
    cell: Cell = row["cell"]
    if cell.method == BASELINE:
        return text_field("reference")
    if cell.synthetic:
        return text_field("not judged: synthetic weights", "unknown")
    if cell.failed:
        return text_field("not judged: failed checks", "failed")
    if row["mcnemar_p_holm"] < LEVEL:
        worse = row["flips_right_to_wrong"] > row["flips_wrong_to_right"]
        return text_field(
            "worse than the baseline" if worse else "better than the baseline", "fail" if worse else "pass"
        )
    least = row["smallest_detectable_difference_corrected"]
    if least is None:
        return text_field("too few items to show any difference", "undecided")
    return text_field(f"no difference shown; {points(least)} or more would be", "undecided")


def compared(key: str, label: str, **more: Any) -> Column:
    """A figure that the baseline has none of."""
    column = figure(key, label, **more)
    return Column(
        key, label, field=lambda row: figure_field(None) if row["cell"].method == BASELINE else column.field(row)
    )


def tasks_table(results: Results) -> Table:
    columns = [
        Column("task", "Task", "left", lambda row: Field(row["task"], row["task"], header=True)),
        Column("method", "Method", "left", lambda row: name_field(row["cell"].method, row["cell"].failed)),
        figure("items", "Items", show="{:,}".format),
        figure("accuracy", "Right [95\u00a0%]", show=share_to_a_tenth, bounds="accuracy_ci95"),
        compared("recovery", "Recovery [95\u00a0%]", show=share_to_a_tenth, bounds="recovery_ci95"),
        compared("flips_right_to_wrong", "Right → wrong", show=str),
        compared("flips_wrong_to_right", "Wrong → right", show=str),
        compared("mcnemar_p_holm", "p, corrected", show=number),
        Column("verdict", "Verdict", "left", verdict_of),
    ]
    note = (
        "Recovery is the share of right answers ÷ the baseline's, over the same items. The p-value is of McNemar's "
        "exact test of the flips, corrected for the number of methods and tasks (Holm). The verdict names the "
        "smallest change of the share of right answers that so many items, with so many flips, show with 80\u00a0% "
        "probability: no smaller one is excluded."
    )
    return table_of("tasks", columns, answered(results), note)
