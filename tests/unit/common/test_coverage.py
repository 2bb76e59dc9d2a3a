"""What the 95 % intervals cover, by simulation on data shaped like ours; the percentile bootstrap fails the same test.

Prompt means are log-normal, with another level in each category; differences of window losses are normal or have
heavier tails; timings are skewed. Every function is vectorised over the simulated data sets.
"""

import numpy
import pytest
from scipy.stats import binomtest

from quantharm.common.medians import median_interval, median_ratio_interval
from quantharm.common.ratios import ratio_interval, weighted_mean_interval
from quantharm.common.shares import paired_share_interval
from quantharm.common.statistics import (
    borrowed_intervals,
    category_intervals,
    mean_interval,
    positive_interval,
    symmetric_interval,
)

SETS = 4_000
AT_LEAST = 0.93
CATEGORIES = 12


def share_covered(bounds, truth) -> float:
    low, high = bounds
    return float(((low <= truth) & (truth <= high)).mean())


def prompt_means(random, categories: int, prompts: int, spread: float) -> tuple[list[numpy.ndarray], numpy.ndarray]:
    """([SETS, prompts] a category, the true mean of category means); spread: of the logarithms within a category."""
    levels = random.normal(0, 0.5, (categories, SETS, 1))
    values = numpy.exp(levels + spread * random.normal(size=(categories, SETS, prompts)))
    return list(values), numpy.exp(levels[..., 0] + spread**2 / 2).mean(0)


def percentile_bootstrap(strata: list[numpy.ndarray], random) -> tuple[numpy.ndarray, numpy.ndarray]:
    """What must not pass: quantiles of the mean of means over 400 resamples within strata."""
    means = 0.0
    for values in strata:
        n = values.shape[-1]
        drawn = random.multinomial(n, numpy.full(n, 1 / n), size=400) / n
        means = means + values @ drawn.T / len(strata)
    return tuple(numpy.quantile(means, [0.025, 0.975], axis=-1))


@pytest.mark.parametrize("spread", [0.3, 0.6, 1.0])
@pytest.mark.parametrize("prompts", [2, 4, 8])
def test_overall_mean_of_skewed_prompts(prompts, spread):
    random = numpy.random.default_rng([prompts, int(10 * spread)])
    strata, truth = prompt_means(random, CATEGORIES, prompts, spread)
    bounds = positive_interval(strata)
    assert AT_LEAST <= share_covered(bounds, truth) <= 0.98
    # The width is no more than twice that of a normal interval about the true standard error.
    variances = [numpy.expm1(spread**2) * (s.mean() ** 2) / prompts for s in strata]
    normal = 2 * 1.96 * numpy.sqrt(numpy.sum(variances)) / CATEGORIES
    assert numpy.median(bounds[1] - bounds[0]) < 2 * normal
    assert share_covered(percentile_bootstrap(strata, random), truth) < AT_LEAST


@pytest.mark.parametrize("spread", [0.3, 0.6, 1.0])
@pytest.mark.parametrize("prompts", [4, 8])
def test_one_category_of_skewed_prompts(prompts, spread):
    random = numpy.random.default_rng([prompts, int(10 * spread)])
    strata, truth = prompt_means(random, 1, prompts, spread)
    assert AT_LEAST <= share_covered(positive_interval(strata), truth) <= 0.98
    assert share_covered(percentile_bootstrap(strata, random), truth) < AT_LEAST


def test_one_category_of_two_prompts_has_no_interval():
    assert mean_interval([[1.0, 1.3]]) is None
    assert mean_interval([[1.0, 1.3, 0.8]]) is None
    assert mean_interval([[1.0, 1.3, 0.8, 1.1]]) is not None
    assert mean_interval([[1.0, 1.3]] * 3) is not None
    assert mean_interval([[1.0, 1.3]] * 11 + [[1.0]]) is None


@pytest.mark.parametrize("spreads", ["equal", "unequal"])
@pytest.mark.parametrize("prompts", [2, 3])
def test_each_category_of_few_prompts_beside_eleven_others(prompts, spreads):
    random = numpy.random.default_rng([prompts, len(spreads)])
    levels = random.normal(0, 0.5, (CATEGORIES, SETS, 1))
    spread = 0.6 if spreads == "equal" else random.uniform(0.2, 1.0, (CATEGORIES, SETS, 1))
    strata = list(numpy.exp(levels + spread * random.normal(size=(CATEGORIES, SETS, prompts))))
    truth = numpy.exp(levels + spread**2 / 2)[..., 0]
    bounds = borrowed_intervals(strata)
    coverage = [share_covered(b, t) for b, t in zip(bounds, truth, strict=True)]
    assert AT_LEAST <= numpy.mean(coverage) <= 0.98
    widths = [numpy.median(b[1] / s.mean(-1)) for b, s in zip(bounds, strata, strict=True)]
    assert max(widths) < 4
    boot = [share_covered(percentile_bootstrap([s], random), t) for s, t in zip(strata, truth, strict=True)]
    assert numpy.mean(boot) < AT_LEAST


def test_few_categories_of_two_prompts_have_no_interval():
    pairs = [[1.0, 1.3], [0.4, 0.5], [2.0, 2.2]]
    assert category_intervals(pairs) == [None, None, None]
    intervals = category_intervals([*pairs * 4, [3.0], [1.0, 1.1, 1.2, 0.9]])
    assert intervals[12] is None
    assert all(intervals[:12])
    assert intervals[13] == mean_interval([[1.0, 1.1, 1.2, 0.9]])
    assert category_intervals([*pairs * 4, [-1e-9, 2e-9]]) == [None] * 13


def test_prompts_of_unequal_spread_and_values_near_zero():
    random = numpy.random.default_rng(7)
    levels = random.normal(0, 0.5, (CATEGORIES, SETS, 1))
    spreads = random.uniform(0.2, 1.0, (CATEGORIES, SETS, 1))
    strata = list(numpy.exp(levels + spreads * random.normal(size=(CATEGORIES, SETS, 4))))
    truth = numpy.exp(levels + spreads**2 / 2)[..., 0].mean(0)
    assert share_covered(positive_interval(strata), truth) >= AT_LEAST
    absent = [s * (random.random(s.shape) > 0.15) for s in strata]  # some prompts do not move at all
    bounds = positive_interval(absent)
    assert share_covered(bounds, 0.85 * truth) >= AT_LEAST
    assert numpy.median(bounds[1] / (0.85 * truth)) < 3


@pytest.mark.parametrize("ratio", [1.0, 1.5])
@pytest.mark.parametrize("prompts", [2, 4, 8])
def test_paired_difference_of_two_methods(prompts, ratio):
    random = numpy.random.default_rng([prompts, int(10 * ratio)])
    levels = random.normal(0, 0.5, (CATEGORIES, SETS, 1))
    shared = levels + random.normal(0, 0.5, (CATEGORIES, SETS, prompts))  # a hard prompt is hard for both
    first, second = (numpy.exp(shared + random.normal(0, 0.3, shared.shape)) for _ in range(2))
    truth = (ratio - 1) * numpy.exp(levels[..., 0] + 0.5**2 / 2 + 0.3**2 / 2).mean(0)
    strata = list(ratio * first - second)
    assert AT_LEAST <= share_covered(symmetric_interval(strata), truth) <= 0.99
    if prompts < 8:
        assert share_covered(percentile_bootstrap(strata, random), truth) < AT_LEAST


@pytest.mark.parametrize("weights", ["equal", "unequal"])
@pytest.mark.parametrize("tails", ["normal", "heavy"])
@pytest.mark.parametrize("windows", [2, 4, 16, 100])
def test_paired_difference_of_window_losses(windows, tails, weights):
    random = numpy.random.default_rng([windows, len(tails), len(weights)])
    shape = (SETS, windows)
    targets = numpy.full(shape, 2047.0) if weights == "equal" else random.uniform(200, 2047, shape)
    noise = random.normal(size=shape) if tails == "normal" else random.standard_t(4, shape)
    losses = targets * (0.045 + 0.0126 * noise)  # the spread of NF4 on the built-in model
    bounds = ratio_interval(losses, targets)
    assert AT_LEAST <= share_covered(bounds, 0.045) <= 0.99
    if windows < 16:
        drawn = random.multinomial(windows, numpy.full(windows, 1 / windows), size=400)
        ratios = (losses @ drawn.T) / (targets @ drawn.T)
        assert share_covered(numpy.quantile(ratios, [0.025, 0.975], axis=-1), 0.045) < AT_LEAST


@pytest.mark.parametrize("values", [6, 7, 10, 25])
def test_medians_and_their_ratio(values):
    random = numpy.random.default_rng(values)
    median, ratio = 0, 0
    for _ in range(600):
        first, second = 1 + 0.02 * numpy.exp(random.normal(size=(2, values)))
        low, high = median_interval(first)
        median += low <= 1.02 <= high
        low, high = median_ratio_interval(first, second)
        ratio += low <= 1 <= high
    assert binomtest(median, 600, 0.95).pvalue > 0.001 or median > 0.95 * 600
    assert ratio > 0.95 * 600


def test_change_of_a_share_covers_where_few_prompts_change():
    random = numpy.random.default_rng(0)
    for prompts, gain, loss in ((24, 0.0, 0.0), (24, 0.02, 0.1), (96, 0.05, 0.05), (96, 0.0, 0.03)):
        counts = random.multinomial(prompts, [gain, loss, 1 - gain - loss], size=1_000)
        inside = 0
        for gained, lost, _ in counts:
            low, high = paired_share_interval(gained, lost, prompts)
            inside += low <= gain - loss <= high
        assert inside >= AT_LEAST * 1_000


def test_public_functions_choose_these_intervals():
    positive = [[0.1, 0.4, 0.2, 0.3], [1.0, 2.0, 1.5, 0.7]]
    arrays = [numpy.array(s) for s in positive]
    assert mean_interval(positive) == list(positive_interval(arrays))
    low, high = mean_interval([-a for a in arrays])
    assert [-high, -low] == mean_interval(positive)
    mixed = [numpy.array([-0.1, 0.4, 0.2, 0.3]), arrays[1]]
    assert mean_interval(mixed) == list(symmetric_interval(mixed))
    sums, targets = numpy.array([3.0, 5.0, 4.0]), numpy.array([1.0, 2.0, 1.0])
    bounds = ratio_interval(sums, targets)
    assert weighted_mean_interval(sums, targets, numpy.exp) == pytest.approx(list(numpy.exp(bounds)))
