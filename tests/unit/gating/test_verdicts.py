"""Verdicts of the budget: by hand, and by simulation how often a cell exactly at its limit passes or breaches."""

import math

import numpy
import pytest
from scipy.stats import beta

from quantharm.common.ratios import weighted_mean_interval
from quantharm.common.shares import share_interval
from quantharm.common.statistics import mean_interval, positive_interval
from quantharm.gating.limits import Limit
from quantharm.gating.verdicts import BREACH, NOT_MEASURED, PASS, UNDECIDED, Figure, enough, is_accepted, judge

LIMIT = Limit("kl_nats", None, 0.05)


@pytest.mark.parametrize(
    ("figure", "at_most", "expected"),
    [
        (Figure(0.04, [0.03, 0.05]), True, PASS),
        (Figure(0.04, [0.03, 0.0501]), True, UNDECIDED),
        (Figure(0.06, [0.05, 0.07]), True, UNDECIDED),
        (Figure(0.06, [0.0501, 0.07]), True, BREACH),
        (Figure(0.06, [0.0501, 0.07]), False, PASS),
        (Figure(0.04, [0.03, 0.05]), False, UNDECIDED),
        (Figure(0.04, [0.03, 0.0499]), False, BREACH),
        (Figure(0.05, exact=True), True, PASS),
        (Figure(0.05, exact=True), False, PASS),
        (Figure(0.0501, exact=True), True, BREACH),
        (Figure(0.0499, exact=True), False, BREACH),
        (Figure(0.001, None), True, UNDECIDED),
        (Figure(9.0, None), True, UNDECIDED),
        (Figure(None, missing="no tasks"), True, NOT_MEASURED),
        (Figure(0.06, [0.055, 0.065], floor=0.06), True, UNDECIDED),  # no breach rests on what hardware changes
        (Figure(0.07, [0.061, 0.08], floor=0.06), True, BREACH),
        (Figure(0.0, [0.0, 0.0], floor=0.06), True, PASS),
    ],
)
def test_a_limit_is_kept_and_breached_with_the_whole_interval(figure, at_most, expected):
    assert judge(LIMIT, figure, at_most)[0] == expected


def test_a_lower_bound_breaches_and_never_passes():
    far, near = Figure(0.2, [0.15, 0.3], at_least=True), Figure(0.01, [0.005, 0.02], at_least=True)
    assert judge(LIMIT, far, True)[0] == BREACH
    assert judge(LIMIT, near, True) == (
        UNDECIDED,
        "the figure is a lower bound, from the few tokens that the server shows",
    )
    assert judge(LIMIT, Figure(0.0, exact=True, at_least=True), True)[0] == UNDECIDED


def test_what_the_gate_accepts_follows_the_config():
    for undecided in ("pass", "fail"):
        for not_measured in ("pass", "fail"):
            budget = {"undecided": undecided, "not_measured": not_measured}
            assert is_accepted(PASS, budget)
            assert not is_accepted(BREACH, budget)
            assert is_accepted(UNDECIDED, budget) == (undecided == "pass")
            assert is_accepted(NOT_MEASURED, budget) == (not_measured == "pass")


def test_how_many_more_would_tell():
    # The upper end is 0.02 above the figure and the limit 0.01: half an interval has to halve, so four times as many.
    assert "about 40 prompts" in enough(0.05, 0.04, [0.03, 0.06], 10, "prompts")
    assert enough(0.05, 0.05, [0.03, 0.06], 10, "prompts") == ""
    # From above the limit, the lower end counts: (0.02 / 0.01)² times 25.
    assert "about 100 windows" in enough(0.05, 0.06, [0.04, 0.09], 25, "windows")


def shares(low: numpy.ndarray, high: numpy.ndarray, limit: float) -> tuple[float, float]:
    """(share that passes, share that breaches) of intervals against a limit at the true value."""
    return float((high <= limit).mean()), float((low > limit).mean())


def test_a_true_kl_at_the_limit_breaches_or_passes_seldom():
    """Log-normal prompt means, 12 categories of 2 or 8: each wrong claim in about 2.5 % of runs, no more than 5."""
    random = numpy.random.default_rng(5)
    for prompts in (2, 8):
        values = numpy.exp(0.7 * random.normal(size=(12, 4_000, prompts)))
        passes, breaches = shares(*positive_interval(list(values)), math.exp(0.7**2 / 2))
        assert passes <= 0.05
        assert breaches <= 0.05


def test_a_true_perplexity_change_at_the_limit_breaches_or_passes_seldom():
    random = numpy.random.default_rng(6)
    claims = []
    for _ in range(2_000):
        differences = 100 * (0.02 + 0.01 * random.standard_t(5, size=20))
        low, high = weighted_mean_interval(differences, numpy.full(20, 100))
        claims.append((high <= 0.02, low > 0.02))
    assert numpy.mean(claims, axis=0).max() <= 0.035


def test_a_method_that_is_twice_its_limit_breaches_and_one_at_half_of_it_passes():
    random = numpy.random.default_rng(7)
    for factor, expected in ((2.0, BREACH), (0.5, PASS)):
        values = factor * 0.05 * numpy.exp(0.5 * random.normal(size=(12, 8)) - 0.125)
        ci95 = mean_interval(list(values))
        assert judge(LIMIT, Figure(float(values.mean()), ci95), True)[0] == expected


def test_the_interval_of_a_share_is_clopper_and_pearsons_and_covers():
    for part, whole in ((0, 20), (3, 20), (20, 20), (7, 300)):
        low = beta.ppf(0.025, part, whole - part + 1) if part else 0.0
        high = beta.ppf(0.975, part + 1, whole - part) if part < whole else 1.0
        assert share_interval(part, whole) == pytest.approx([low, high], abs=1e-9)
    random = numpy.random.default_rng(8)
    for truth in (0.01, 0.1, 0.5):
        drawn = random.binomial(50, truth, 400)
        bounds = {part: share_interval(int(part), 50) for part in set(drawn)}
        assert numpy.mean([bounds[part][0] <= truth <= bounds[part][1] for part in drawn]) >= 0.94
