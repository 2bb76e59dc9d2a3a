"""Means and intervals, against scipy's own tests and formulas written out; what they cover is in test_coverage.py."""

import math
import re
from pathlib import Path

import numpy
import pytest
import scipy.stats

from quantharm.common.medians import describe, median_interval, median_ratio_interval
from quantharm.common.ratios import weighted_mean_interval
from quantharm.common.shares import paired_share_interval
from quantharm.common.statistics import category_intervals, holm, mean_interval, mean_of_means, p_value, stratified_mean


def test_mean_of_means_by_hand():
    # (1 + 3) / 2 = 2 and 8: their mean is 5, while the mean of all three values is 4.
    assert mean_of_means(numpy.array([1.0, 3.0]), numpy.array([8.0])) == 5.0


def test_values_of_both_signs_have_students_interval():
    sample = numpy.random.default_rng(1).normal(size=12)
    expected = scipy.stats.ttest_1samp(sample, 0).confidence_interval(0.95)
    assert stratified_mean([sample]) == {"mean": sample.mean(), "ci95": pytest.approx([expected.low, expected.high])}
    assert p_value([sample]) == pytest.approx(scipy.stats.ttest_1samp(sample, 0).pvalue)


def test_strata_have_variances_of_their_own():
    random = numpy.random.default_rng(2)
    first, second = random.normal(1, 1, 8), random.normal(3, 5, 5)
    # Half of Welch's interval for mean(first) - mean(second) is that of the mean of mean(first) and mean(-second).
    welch = scipy.stats.ttest_ind(first, second, equal_var=False)
    bounds = welch.confidence_interval(0.95)
    assert mean_interval([first, -second]) == pytest.approx([bounds.low / 2, bounds.high / 2])
    assert p_value([first, -second]) == pytest.approx(welch.pvalue)


def test_positive_values_by_the_formula_written_out():
    values = [1.0, 2.0, 4.0, 9.0]
    logs = [math.log(v) for v in values]
    spread = numpy.var(logs, ddof=1)
    relative = numpy.var(values, ddof=1) / 4 / 4.0**2  # of the mean, 4
    variance = max(relative, spread / 4 + spread**2 / 6)
    half = 3.182446305284263 * math.sqrt(variance)  # Student's t at 97.5 %, 3 degrees of freedom
    low, high = mean_interval([values])
    assert low == pytest.approx(4 * math.exp(variance / 2 - half))
    assert high == pytest.approx(4 * math.exp(variance / 2 + half))
    assert mean_interval([[10 * v for v in values]]) == pytest.approx([10 * low, 10 * high])


def test_a_category_of_two_prompts_by_the_formula_written_out():
    strata = [[1.0, 1.5 + i / 10] for i in range(7)] + [[1.0, 4.0]]  # the last varies more than all together
    spreads = [numpy.var(numpy.log(s), ddof=1) for s in strata]
    for values, own, interval in zip(strata, spreads, category_intervals(strata), strict=True):
        spread = max(own, numpy.mean(spreads))
        variance = spread / 2 + spread**2 / (2 * 8)
        half = 2.3060041350333704 * math.sqrt(variance)  # Student's t at 97.5 %, 8 degrees of freedom
        assert interval == pytest.approx(
            list(numpy.mean(values) * numpy.exp([variance / 2 - half, variance / 2 + half]))
        )


def test_a_category_of_enough_prompts_borrows_nothing():
    several, other = [1.0, 1.1, 1.2, 1.3], [[1.0, 5.0]] * 8
    assert category_intervals([several, *other])[0] == mean_interval([several])
    assert category_intervals([several, *other[1:], [-1.0, 5.0]])[1:] == [None] * 8


def test_strata_of_positive_values_share_the_spread_of_their_logarithms():
    strata = [[1.0, 2.0, 3.0], [10.0, 30.0, 20.0], [0.1, 0.1, 0.4]]
    spread = numpy.mean([numpy.var(numpy.log(s), ddof=1) for s in strata])
    means = numpy.array([2.0, 20.0, 0.2])
    modelled = (means**2).sum() / means.sum() ** 2 * spread / 3 + spread**2 / 12
    own = sum(numpy.var(s, ddof=1) / 3 for s in strata) / means.sum() ** 2
    variance = max(modelled, own)
    half = 2.446911848791681 * math.sqrt(variance)  # 6 degrees of freedom
    expected = means.mean() * numpy.exp([variance / 2 - half, variance / 2 + half])
    assert stratified_mean(strata)["ci95"] == pytest.approx(list(expected))


def test_a_value_of_zero_does_not_make_the_interval_endless():
    low, high = mean_interval([[0.0, 1.0, 1.2, 0.9, 1.1, 1.0]])
    assert 0.1 < low < 0.7 < high < 5
    low, high = mean_interval([[0.0, 0.0], [1.0, 1.1], [2.0, 2.2]])
    assert 0.5 < low < 1.05 < high < 2


def test_equal_values_have_an_interval_of_no_width():
    assert mean_interval([[2.0] * 4]) == pytest.approx([2.0, 2.0])
    assert mean_interval([[0.0] * 4]) == [0.0, 0.0]
    assert weighted_mean_interval([2.0, 4.0], [1.0, 2.0]) == pytest.approx([2.0, 2.0])


@pytest.mark.parametrize("n", [0, 1])
def test_no_interval_for_fewer_than_two_values(n):
    assert mean_interval([[1.0] * n]) is None
    assert weighted_mean_interval([1.0] * n, [2.0] * n) is None
    assert median_interval([1.0] * n) is None
    assert paired_share_interval(0, 0, n) is None
    assert p_value([[1.0, 1.1, 1.2], [1.0] * n]) == 1.0


def test_no_interval_when_one_stratum_has_a_single_value():
    assert stratified_mean([[1.0, 2.0], [3.0]]) == {"mean": 2.25, "ci95": None}


def test_a_difference_within_the_margin_shows_nothing():
    sample = numpy.array([0.9, 1.0, 1.1, 1.0])
    assert p_value([sample]) < 0.001
    assert p_value([sample], margin=1.0) == 1.0
    assert p_value([sample], margin=0.5) == pytest.approx(scipy.stats.ttest_1samp(sample, 0.5).pvalue)
    assert p_value([[1.0, 1.0]]) == 0.0


def test_holm_by_hand():
    # 0.01 × 4, 0.02 × 3, then 0.03 × 2 = 0.06, and 0.035 × 1 may not fall below it.
    adjusted = holm({"c": 0.03, "a": 0.01, "d": 0.035, "b": 0.02})
    assert adjusted == {"c": pytest.approx(0.06), "a": 0.04, "d": pytest.approx(0.06), "b": 0.06}
    assert list(adjusted) == ["c", "a", "d", "b"]
    assert holm({"a": 0.7, "b": 0.9}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_equal_windows_have_students_interval():
    values = numpy.random.default_rng(3).normal(3, 0.2, 20)
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    bounds = weighted_mean_interval(values * 100, [100] * 20, numpy.exp)
    assert bounds == pytest.approx([math.exp(expected.low), math.exp(expected.high)])


def test_unequal_windows_by_a_jackknife_written_out():
    sums, counts = [100.0, 50.0, 8.0, 40.0], [10.0, 6.0, 1.0, 4.0]
    left_out = [(198.0 - s) / (21.0 - c) for s, c in zip(sums, counts, strict=True)]
    mean = sum(left_out) / 4
    error = math.sqrt(3 / 4 * sum((v - mean) ** 2 for v in left_out))
    degrees = (100 + 36 + 1 + 16) ** 2 / (10_000 + 1_296 + 1 + 256) - 1
    half = scipy.stats.t.ppf(0.975, degrees) * error
    assert weighted_mean_interval(sums, counts) == pytest.approx([198 / 21 - half, 198 / 21 + half])


def test_a_window_with_many_targets_weighs_more():
    low, high = weighted_mean_interval([100.0, 1.0, 2.0], [1.0, 100.0, 200.0])
    assert low + high == pytest.approx(2 * 103 / 301)  # about Σ sums / Σ counts, not about the mean of ratios


@pytest.mark.parametrize("n", [6, 7, 9, 10, 23, 60])
def test_medians_interval_is_scipys(n):
    values = numpy.random.default_rng(n).exponential(size=n)
    expected = scipy.stats.quantile_test(values, q=0, p=0.5).confidence_interval(0.95)
    assert median_interval(values) == [expected.low, expected.high]


def test_five_values_say_too_little_of_a_median():
    assert median_interval([1.0, 2.0, 3.0, 4.0, 5.0]) is None
    assert median_interval([6.0, 1.0, 2.0, 3.0, 4.0, 5.0]) == [1.0, 6.0]
    assert median_ratio_interval([1.0] * 5, [1.0] * 9) is None


def test_ratio_of_medians_by_hand():
    mine, reference = [2.0, 1.0, 4.0, 2.0, 2.0, 2.0], [1.0, 0.5, 1.0, 1.0, 1.0, 4.0]
    down = math.hypot(math.log(2 / 1), math.log(4 / 1))  # mine as low as 1, the reference as high as 4
    up = math.hypot(math.log(4 / 2), math.log(1 / 0.5))
    assert median_ratio_interval(mine, reference) == pytest.approx([2 * math.exp(-down), 2 * math.exp(up)])
    wide = median_ratio_interval(mine, reference, spread=3.0)
    assert wide == pytest.approx([2 * math.exp(-math.hypot(down, 3)), 2 * math.exp(math.hypot(up, 3))])


def test_change_of_a_share_by_hand():
    # Bonett and Price: 3 + 1 and 1 + 1 of 20 + 2: change 2/22, variance (6/22 - (2/22)²) / 22.
    half = 1.959963984540054 * math.sqrt((6 / 22 - (2 / 22) ** 2) / 22)
    assert paired_share_interval(3, 1, 20) == pytest.approx([2 / 22 - half, 2 / 22 + half])
    low, high = paired_share_interval(0, 0, 24)
    assert -0.2 < low < 0 < high < 0.2


def test_describe_by_hand():
    result = describe([1, 2, 3, 4, 10, 3])
    assert result["median"] == 3.0
    assert result["p90"] == pytest.approx(4 + 0.5 * 6)  # halfway between the 5th and the 6th value
    assert result["values"] == [1.0, 2.0, 3.0, 4.0, 10.0, 3.0]
    assert result["ci95"] == [1.0, 10.0]


def test_no_stage_imports_what_takes_half_a_second():
    """scipy.special has the distributions that are used, in a tenth of the time; every job would pay for the rest."""
    package = Path(__file__).resolve().parents[3] / "workflow" / "quantharm"
    sources = [path for path in package.rglob("*.py") if "reporting" not in path.parts]
    users = [path.name for path in sources if re.search(r"scipy\.stats|scipy import .*stats", path.read_text())]
    assert len(sources) > 50
    assert [name for name in users if name != "statistics.py"] == []  # which says why not
