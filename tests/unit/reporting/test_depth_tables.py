"""How answers end, and KL by depth, as tables and as a chart."""

from pathlib import Path

import pytest

from quantharm.report import default_thresholds
from quantharm.reporting.charts.base import to_svg
from quantharm.reporting.charts.depth import kl_by_depth_chart
from quantharm.reporting.results import Cell, Results
from quantharm.reporting.tables.depth import divergence_by_depth_table, long_answers_table
from quantharm.reporting.tables.table import frame


def bins(*means: float) -> list[dict]:
    edges = [(0, 16), (16, 32), (32, 64)]
    return [
        {"from_tokens": low, "to_tokens": high, "kl_nats_mean": kl, "ci95": [kl / 2, 2 * kl], "prompts": 9 - i}
        | {"positions": 100 - i, "top1_agreement": 0.9}
        for i, ((low, high), kl) in enumerate(zip(edges, means, strict=False))
    ]


def cell(method: str, depths: list[dict] | None, looping: int = 0, tokens: int = 1024) -> Cell:
    row = {
        "prompts": 9,
        "max_new_tokens": tokens,
        "answers_looping": looping,
        "answers_looping_added_share": looping / 9,
        "answers_looping_added_share_ci95": [0.0, 0.5],
        "loop_start_token_median": 300.0 if looping else None,
        "answers_cut_off": looping,
        "answers_cut_off_added_share": looping / 9,
        "answers_cut_off_added_share_ci95": [0.0, 0.5],
        "answers_ended_early": 1,
        "first_difference_median": 40.5,
        "first_difference_ci95": [12.0, 90.0],
    }
    divergence = {} if depths is None else {"by_depth": depths}
    return Cell(method, row, {}, {}, divergence, {}, {"failed": []}, None, Path())


def results(*cells: Cell) -> Results:
    return Results("m", Path(), list(cells), default_thresholds())


@pytest.fixture
def long() -> Results:
    return results(cell("baseline", bins(1e-7, 1e-7, 2e-7)), cell("nf4", bins(0.03, 0.05, 0.2), looping=4))


def test_endings_of_each_method(long):
    table = long_answers_table(long)
    rows = {row[0].text: {c.key: r for c, r in zip(table.columns, row, strict=True)} for row in table.rows}
    assert rows["nf4"]["answers_looping"].text == "4 of 9"
    assert rows["nf4"]["answers_looping_added_share"].text.startswith("44")
    assert rows["nf4"]["first_difference_median_token"].bounds == [12.0, 90.0]
    assert rows["baseline"]["answers_ended_early"].text == "–"
    assert "protocol `long`" not in table.note
    assert "protocol `long`" in long_answers_table(results(cell("baseline", None, tokens=32))).note


def test_a_row_a_depth_and_a_column_a_method(long):
    table = divergence_by_depth_table(long)
    data = frame(table)
    assert list(data["depth_tokens"]) == ["0 to 15", "16 to 31", "32 to 63"]
    assert list(data["prompts"]) == [9, 8, 7]
    assert list(data["kl_nats_mean/nf4"]) == [0.03, 0.05, 0.2]
    assert list(data["kl_nats_mean/nf4_ci95_high"]) == [0.06, 0.1, 0.4]
    assert divergence_by_depth_table(results(cell("baseline", None))).rows == []


def test_the_chart_shows_every_method_and_says_its_figures(long):
    figure = kl_by_depth_chart(long)
    assert "nf4 0.0300 nats at first, 0.200 at last" in figure.alternative
    svg = to_svg(figure)
    assert svg.count("16 to 31") >= 1
    assert "No depth was measured" in kl_by_depth_chart(results(cell("baseline", None), cell("nf4", None))).alternative
