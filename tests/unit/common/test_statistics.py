"""Means and intervals, against scipy called directly, numpy by hand and a bootstrap of our own."""

import numpy
import pytest
import scipy.stats

from quantharm.common import statistics
from quantharm.common.statistics import describe, interval_95, mean_of_means, stratified_mean, weighted_mean_interval


def test_mean_of_means_by_hand():
    # (1 + 3) / 2 = 2 and 8: their mean is 5, while the mean of all three values is 4.
    assert mean_of_means(numpy.array([1.0, 3.0]), numpy.array([8.0])) == 5.0


def test_stratified_mean_by_hand():
    result = stratified_mean([[0.0, 1.0, 2.0], [10.0, 20.0]])
    assert result["mean"] == (1 + 15) / 2
    low, high = result["ci95"]
    assert 5.0 <= low < result["mean"] < high <= 11.0  # lowest and highest means that resampling can give


def test_interval_equals_scipy_called_directly():
    sample = numpy.random.default_rng(1).exponential(size=30)
    expected = scipy.stats.bootstrap(
        (sample,), numpy.mean, n_resamples=9_999, method="percentile", rng=numpy.random.default_rng(0), batch=1_000
    ).confidence_interval
    assert interval_95(sample, statistic=numpy.mean) == [expected.low, expected.high]


def test_stratified_interval_equals_scipy_called_directly():
    rng = numpy.random.default_rng(2)
    a, b, c = rng.normal(0, 1, 8), rng.normal(5, 3, 8), rng.normal(-2, 0.5, 5)

    def statistic(x, y, z, axis):
        return (x.mean(axis) + y.mean(axis) + z.mean(axis)) / 3

    expected = scipy.stats.bootstrap(
        (a, b, c), statistic, n_resamples=9_999, method="percentile", rng=numpy.random.default_rng(0), batch=1_000
    ).confidence_interval
    numpy.testing.assert_allclose(stratified_mean([a, b, c])["ci95"], [expected.low, expected.high], rtol=1e-12)


def test_stratified_interval_is_that_of_resampling_within_strata():
    rng = numpy.random.default_rng(3)
    strata = [rng.exponential(s, 8) for s in (1, 2, 10)]
    means = numpy.mean([rng.choice(s, (20_000, len(s))).mean(1) for s in strata], axis=0)
    low, high = stratified_mean(strata)["ci95"]
    width = high - low
    assert abs(low - numpy.quantile(means, 0.025)) < 0.05 * width
    assert abs(high - numpy.quantile(means, 0.975)) < 0.05 * width


def test_weighted_mean_interval_is_that_of_resampling_pairs():
    rng = numpy.random.default_rng(4)
    counts = rng.integers(10, 1000, 25)
    sums = counts * rng.normal(3, 0.5, 25)
    drawn = rng.integers(0, 25, (20_000, 25))
    expected = numpy.quantile(numpy.exp(sums[drawn].sum(1) / counts[drawn].sum(1)), [0.025, 0.975])
    low, high = weighted_mean_interval(sums, counts, numpy.exp)
    width = expected[1] - expected[0]
    assert abs(low - expected[0]) < 0.05 * width
    assert abs(high - expected[1]) < 0.05 * width
    assert low < numpy.exp(sums.sum() / counts.sum()) < high


def test_weighted_mean_is_not_the_mean_of_ratios():
    # A window with many targets weighs more: Σ sums / Σ counts = 101 / 101, the mean of ratios would be 50.5.
    low, high = weighted_mean_interval([100.0, 1.0], [1.0, 100.0])
    assert (low, high) == (0.01, 100.0)  # both the same window: 1/100 and 100/1


@pytest.mark.parametrize("n", [0, 1])
def test_no_interval_for_fewer_than_two_values(n):
    assert interval_95([1.0] * n, statistic=numpy.mean) is None
    assert weighted_mean_interval([1.0] * n, [2.0] * n) is None


def test_no_interval_when_one_stratum_has_a_single_value():
    assert stratified_mean([[1.0, 2.0], [3.0]]) == {"mean": 2.25, "ci95": None}


def test_intervals_are_the_same_each_time_and_of_95_percent():
    sample = numpy.random.default_rng(5).normal(size=400)
    first, second = (interval_95(sample, statistic=numpy.mean) for _ in range(2))
    assert first == second
    expected = 2 * 1.959964 * sample.std() / numpy.sqrt(400)
    assert first[1] - first[0] == pytest.approx(expected, rel=0.05)
    assert statistics.RESAMPLES >= 9_999


def test_describe_by_hand():
    result = describe([1, 2, 3, 4, 10])
    assert result["median"] == 3.0
    assert result["p90"] == pytest.approx(4 + 0.6 * 6)  # linear between the 4th and the 5th value
    assert result["values"] == [1.0, 2.0, 3.0, 4.0, 10.0]
    assert result["ci95"][0] <= 3.0 <= result["ci95"][1]
