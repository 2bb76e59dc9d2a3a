"""Paired differences by hand: perplexity over the same windows, answers over the same prompts."""

import math

import numpy
import pandas
import pytest
import scipy.stats

from quantharm.common.errors import UserError
from quantharm.common.files import write_parquet
from quantharm.common.paired import first_difference, flat, paired_answers, paired_perplexity


@pytest.fixture
def cells(tmp_path):
    """cells(stage, baseline rows, cell rows) → (cell folder, baseline folder)."""

    def write(stage: str, baseline: dict, cell: dict):
        for name, rows in (("baseline", baseline), ("nf4", cell)):
            write_parquet(tmp_path / name / f"{stage}.parquet", pandas.DataFrame(rows))
        return tmp_path / "nf4", tmp_path / "baseline"

    return write


def windows(sums, targets) -> dict:
    return {"window": range(len(sums)), "nll_sum_nats": sums, "targets": targets}


def test_change_of_perplexity_by_hand(cells):
    result = paired_perplexity(
        *cells("perplexity", windows([200.0, 330.0], [100, 100]), windows([210.0, 340.0], [100, 100]))
    )
    before, after = math.exp(530 / 200), math.exp(550 / 200)
    assert result["perplexity_change_percent"] == pytest.approx(100 * (after / before - 1), rel=1e-12)
    low, high = result["perplexity_change_percent_ci95"]
    assert low == pytest.approx(100 * math.expm1(0.1), rel=1e-9)  # every window became worse by the same 0.1 nats
    assert high == pytest.approx(low, rel=1e-9)


def test_change_of_perplexity_weighs_windows_by_their_targets(cells):
    result = paired_perplexity(*cells("perplexity", windows([0.0, 0.0], [10, 90]), windows([10.0, 0.0], [10, 90])))
    assert result["perplexity_change_percent"] == pytest.approx(100 * math.expm1(10 / 100))


def test_interval_of_the_change_is_paired(cells):
    """Windows differ by far more than the method changes them: an interval that is not paired would hold zero."""
    rng = numpy.random.default_rng(0)
    base = rng.normal(3000, 600, 40)
    worse = base + rng.normal(20, 4, 40)
    low, high = paired_perplexity(*cells("perplexity", windows(base, [1000] * 40), windows(worse, [1000] * 40)))[
        "perplexity_change_percent_ci95"
    ]
    expected = scipy.stats.ttest_rel(worse, base).confidence_interval(0.95)
    assert 1.5 < low < high < 2.5
    assert [low, high] == pytest.approx([100 * math.expm1(bound / 1000) for bound in expected])


def test_no_change_is_zero_with_an_interval_of_zero(cells):
    rows = windows([200.0, 330.0, 100.0], [100, 100, 100])
    result = paired_perplexity(*cells("perplexity", rows, rows))
    assert result == {"perplexity_change_percent": 0.0, "perplexity_change_percent_ci95": [0.0, 0.0]}


@pytest.mark.parametrize("targets", [[100, 99], [100]])
def test_other_windows_are_refused(cells, targets):
    with pytest.raises(UserError, match="scored different windows"):
        paired_perplexity(*cells("perplexity", windows([1.0, 2.0], [100, 100]), windows([1.0] * len(targets), targets)))


@pytest.mark.parametrize(
    ("mine", "reference", "expected"),
    [
        ([1, 2, 3], [1, 2, 3], None),
        ([1, 2, 3], [1, 9, 3], 1),
        ([5, 2], [1, 2], 0),
        ([1, 2], [1, 2, 3], 2),
        ([1, 2, 3], [1, 2], 2),
        ([], [1], 0),
        ([], [], None),
    ],
)
def test_first_difference(mine, reference, expected):
    assert first_difference(mine, reference) == expected


def answers(ids, tokens, correct) -> dict:
    rows = {"prompt_id": ids, "token_ids": tokens, "correct": pandas.array(correct, dtype="boolean")}
    return rows | {"stop_reason": ["length" if len(t) > 1 else "end_of_sequence" for t in tokens]}


def test_flips_and_differences_by_hand(cells):
    before = answers(list("abcdef"), [[1, 2], [3], [4, 5], [6], [7, 8], [9]], [True, True, False, False, None, True])
    # given in another order: prompts are matched by their ids
    after = answers(list("fedcba"), [[9], [7, 0], [6], [4, 5], [2, 2], [1, 2]], [False, True, True, False, False, True])
    found = paired_answers(*cells("generation", before, after))
    assert found["answers_cut_off"] == 4
    assert found["answers_looping"] == 0
    assert {key: value for key, value in found.items() if not key.startswith(("answers", "loop"))} == {
        "flips_right_to_wrong": 2,  # b and f
        "flips_wrong_to_right": 1,  # d; e is judged on one side only
        "identical_responses": 4,
        "first_difference_median": 0.5,  # b at 0, e at 1
        "first_difference_ci95": None,  # of two
    }


def test_identical_answers_have_no_first_difference(cells):
    rows = answers(["a"], [[1, 2]], [None])
    assert paired_answers(*cells("generation", rows, rows))["first_difference_median"] is None


def test_a_row_for_csv_is_flat():
    row = {
        "model": "m",
        "x_ci95": [1.0, 2.0],
        "y_ci95": None,
        "kl_by_category": {"A": 0.1},
        "kl_by_depth": [{"from_tokens": 0, "to_tokens": 16, "kl_nats_mean": 0.3}],
        "checks_failed": ["a", "b"],
    }
    assert flat(row) == {
        "model": "m",
        "x_ci95_low": 1.0,
        "x_ci95_high": 2.0,
        "y_ci95_low": None,
        "y_ci95_high": None,
        "kl/A": 0.1,
        "kl/tokens 0 to 15": 0.3,
        "checks_failed": "a, b",
    }
