"""The table of tasks: verdicts, rows, and what stands where nothing was answered."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from quantharm.common.accuracy import Pairs, accuracy_interval, compare, corrected, smallest_detectable_change
from quantharm.reporting.charts.tasks import recovery_chart
from quantharm.reporting.results import Cell
from quantharm.reporting.tables.table import frame, markdown_table
from quantharm.reporting.tables.tasks import OVERALL, answered, tasks_table

TABLES = {"int8": Pairs(700, 5, 4, 291), "nf4": Pairs(630, 75, 20, 275), "few": Pairs(3, 0, 1, 1)}


def cell(method: str, tasks: dict | None, failed=(), synthetic=False):
    overall = tasks and next(iter(tasks.values()))
    row = {"tasks": tasks, "tasks_overall": overall, "synthetic": synthetic}
    return Cell(method, row, {}, {}, {}, {}, {"failed": list(failed)}, None, Path())


def results_of(names=("a",), **changed):
    """A baseline and three methods; every task has the same answers."""
    family = corrected(
        {
            m: compare([t]) | {"items": t.items, "accuracy": t.accuracy, "accuracy_ci95": accuracy_interval([1], [2])}
            for m, t in TABLES.items()
        }
    )
    nothing = dict.fromkeys(family["nf4"]) | {"items": 1000, "accuracy": 0.7, "accuracy_ci95": [0.6, 0.8]}
    cells = [cell("baseline", dict.fromkeys(names, nothing))]
    cells += [cell(m, dict.fromkeys(names, f), **changed.get(m, {})) for m, f in family.items()]
    believed = [c for c in cells[1:] if not c.failed]
    return SimpleNamespace(baseline=cells[0], cells=cells, believed_methods=believed)


def verdicts(results) -> dict[str, str]:
    return {row.cell.method: tasks_table(results).columns[-1].field(row).text for row in answered(results)}


def test_no_difference_shown_never_stands_without_what_would_have_been():
    words = verdicts(results_of())
    assert words["baseline"] == "reference"
    assert words["nf4"] == "worse than the baseline"
    least = smallest_detectable_change(1000, 9, 0.05 / 3)
    assert words["int8"] == f"no difference shown; one of {100 * least:.1f} points or more would show"
    assert words["few"] == "too few items to show any difference"


def test_figures_that_mean_nothing_are_not_judged():
    words = verdicts(results_of(nf4={"failed": ["kernel"]}, int8={"synthetic": True}))
    assert words["nf4"] == "not judged: failed checks"
    assert words["int8"] == "not judged: synthetic weights"


def test_all_tasks_together_are_a_row_only_where_there_are_several():
    assert {row.task for row in answered(results_of())} == {"a"}
    rows = answered(results_of(("a", "b")))
    assert [row.task for row in rows[-4:]] == [OVERALL] * 4


def test_the_files_hold_bare_values_with_their_intervals():
    data = frame(tasks_table(results_of()))
    assert (
        data["recovery"][1:].tolist() == pytest.approx([704 / 705, 650 / 705, 4 / 3], rel=1e-12)
        or data["recovery"].dtype == object
    )
    assert {"accuracy_ci95_low", "recovery_ci95_high"} <= set(data)


def test_without_tasks_the_table_is_empty_and_the_chart_says_so():
    nothing = cell("baseline", None)
    results = SimpleNamespace(baseline=nothing, cells=[nothing], believed_methods=[])
    assert len(frame(tasks_table(results))) == 0
    assert markdown_table(tasks_table(results))
    assert recovery_chart(results).alternative == "No tasks were answered."


def test_the_chart_leaves_out_what_is_not_to_be_believed():
    told = recovery_chart(results_of(nf4={"failed": ["kernel"]})).alternative
    assert "int8: 99.9" in told
    assert "nf4" not in told


def test_every_layer_of_a_panel_asks_for_the_same_axis():
    """Vega-Lite's axis holds what each layer asks for: one without a scale of its own begins at zero."""
    (panel,) = recovery_chart(results_of()).chart.to_dict()["vconcat"]
    scales = [layer["encoding"]["x"]["scale"] for layer in panel["layer"]]
    assert len(scales) == 3
    assert scales[0]["domain"][0] > 50
    assert all(scale == scales[0] for scale in scales)
