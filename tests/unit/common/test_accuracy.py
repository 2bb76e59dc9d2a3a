"""Statistics of right and wrong answers: against scipy, by hand, and by simulation of what the intervals cover."""

import itertools
import math

import numpy
import pytest
from scipy.optimize import brentq
from scipy.stats import binom, binomtest, norm

from quantharm.common.accuracy import (
    LEVEL,
    POWER,
    Pairs,
    accuracy_interval,
    change_interval,
    compare,
    corrected,
    mcnemar_p,
    pairs_of,
    power_of_mcnemar,
    recovery,
    recovery_interval,
    smallest_detectable_change,
)
from quantharm.common.shares import paired_share_interval

Z = norm.ppf(0.975)


def test_pairs_count_who_was_right():
    mine, reference = [1, 1, 0, 0, 1, 0], [1, 0, 1, 0, 1, 1]
    table = pairs_of(mine, reference)
    assert table == Pairs(both=2, lost=2, gained=1, neither=1)
    assert (table.items, table.accuracy, table.baseline_accuracy) == (6, 0.5, 4 / 6)


# ---------------------------------------------------------------- accuracy


def wilson(right: int, items: int) -> tuple[float, float]:
    """By hand: the shares p for which |observed - p| is 1.96 standard errors at p."""
    share = right / items

    def excess(p):
        return (share - p) ** 2 - Z**2 * p * (1 - p) / items

    return brentq(excess, 1e-12, share), brentq(excess, share, 1 - 1e-12)


def test_one_tasks_interval_is_wilsons():
    assert accuracy_interval([218], [320]) == pytest.approx(wilson(218, 320), abs=1e-9)
    by_scipy = binomtest(218, 320).proportion_ci(method="wilson")
    assert accuracy_interval([218], [320]) == pytest.approx([by_scipy.low, by_scipy.high], abs=1e-9)


def test_the_interval_of_two_equal_tasks_is_that_of_one_over_root_two():
    low, high = wilson(60, 100)
    both = accuracy_interval([60, 60], [100, 100])
    assert both == pytest.approx([0.6 - (0.6 - low) / math.sqrt(2), 0.6 + (high - 0.6) / math.sqrt(2)])


def test_all_right_is_no_certainty():
    low, high = accuracy_interval([50], [50])
    assert low == pytest.approx(50 / (50 + Z**2))
    assert high == pytest.approx(1)


@pytest.mark.parametrize("items", [50, 300, 1000])
def test_wilsons_interval_covers_95_in_100(items):
    """Exactly, by the binomial distribution: no chance in it."""
    counts = numpy.arange(items + 1)
    bounds = numpy.array([accuracy_interval([int(k)], [items]) for k in counts])
    shares = numpy.linspace(0.1, 0.95, 35)
    inside = (bounds[:, :1] <= shares) & (shares <= bounds[:, 1:])  # [counts, shares]
    covered = (binom.pmf(counts[:, None], items, shares) * inside).sum(0)
    assert covered.mean() == pytest.approx(0.95, abs=0.006)
    assert covered.min() > 0.91


# ---------------------------------------------------------------- recovery and change


def test_recovery_of_several_tasks_is_the_ratio_of_mean_accuracies():
    tables = [Pairs(40, 10, 0, 50), Pairs(700, 100, 50, 150)]
    assert recovery(tables) == pytest.approx((0.4 + 0.75) / (0.5 + 0.8))
    assert recovery([Pairs(0, 0, 3, 7)]) is None


def test_recovery_interval_holds_the_ratios_that_the_items_do_not_refute():
    """By hand: at each bound the mean of (mine - r × reference), flips added, is 1.96 standard errors from zero."""
    table = Pairs(200, 11, 4, 105)
    mine = numpy.repeat([1, 0, 1, 0], [200, 12, 5, 105]).astype(float)
    reference = numpy.repeat([1, 1, 0, 0], [200, 12, 5, 105]).astype(float)
    for bound in recovery_interval([table]):
        differences = mine - bound * reference
        assert abs(differences.mean()) == pytest.approx(Z * differences.std() / math.sqrt(len(differences)))


def test_no_flip_is_no_certainty():
    low, high = recovery_interval([Pairs(30, 0, 0, 20)])
    assert 0.85 < low < 1 < high < 1.15


def test_nothing_is_said_of_recovery_where_the_baseline_may_know_nothing():
    assert recovery_interval([Pairs(1, 0, 0, 49)]) is None
    assert recovery_interval([Pairs(30, 0, 0, 20)]) is not None


def drawn(generator, items, accuracy, lost, gained, runs):
    return generator.multinomial(items, [accuracy - lost, lost, gained, 1 - accuracy - gained], runs)


@pytest.mark.parametrize("items", [50, 300])
def test_intervals_of_recovery_and_change_cover_95_in_100(items):
    generator = numpy.random.default_rng(0)
    shares = {"recovery": [], "change": []}
    for accuracy, lost, gained in itertools.product((0.4, 0.85), (0.01, 0.1), (0.01, 0.05)):
        tables = [Pairs(*map(int, row)) for row in drawn(generator, items, accuracy, lost, gained, 400)]
        truth = {"recovery": (accuracy - lost + gained) / accuracy, "change": gained - lost}
        for name, interval in (("recovery", recovery_interval), ("change", change_interval)):
            bounds = numpy.array([interval([table]) for table in tables])
            shares[name].append(((bounds[:, 0] <= truth[name]) & (truth[name] <= bounds[:, 1])).mean())
    for name, covered in shares.items():
        assert min(covered) > 0.91, name  # 0.95 less four standard errors of 400 runs
        assert 0.945 < numpy.mean(covered) < 0.99, name


def test_intervals_over_two_unlike_tasks_cover_95_in_100():
    generator = numpy.random.default_rng(1)
    parts = [(300, 0.8, 0.06, 0.02), (60, 0.35, 0.05, 0.03)]
    draws = [drawn(generator, *part, 500) for part in parts]
    accuracies = [(a - lost + gained, a) for _, a, lost, gained in parts]
    truth = sum(m for m, _ in accuracies) / sum(b for _, b in accuracies)
    change = sum(m - b for m, b in accuracies) / 2
    inside = numpy.zeros(3)
    for rows in zip(*draws, strict=True):
        tables = [Pairs(*map(int, row)) for row in rows]
        right = [t.both + t.gained for t in tables]
        found = [
            (recovery_interval(tables), truth),
            (change_interval(tables), change),
            (accuracy_interval(right, [t.items for t in tables]), sum(m for m, _ in accuracies) / 2),
        ]
        inside += [low <= value <= high for (low, high), value in found]
    assert ((inside / 500 > 0.91) & (inside / 500 < 0.99)).all(), inside / 500


def test_the_change_of_one_task_is_that_of_paired_shares():
    assert change_interval([Pairs(200, 11, 4, 105)]) == pytest.approx(paired_share_interval(4, 11, 320))


# ---------------------------------------------------------------- McNemar's test


@pytest.mark.parametrize(("lost", "gained"), [(11, 4), (4, 11), (0, 6), (5, 5), (0, 1), (300, 250)])
def test_mcnemars_test_is_the_binomial_one(lost, gained):
    tail = sum(math.comb(lost + gained, k) for k in range(min(lost, gained) + 1)) / 2 ** (lost + gained)
    assert mcnemar_p(lost, gained) == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar_p(lost, gained) == pytest.approx(binomtest(lost, lost + gained).pvalue)


def test_mcnemars_test_without_flips_shows_nothing():
    assert mcnemar_p(0, 0) == 1.0


def test_power_is_what_simulation_gives_and_the_level_is_kept():
    generator = numpy.random.default_rng(2)
    for flips, change in ((0.1, 0.0), (0.1, 0.05), (0.03, 0.03)):
        lost, gained = (flips + change) / 2, (flips - change) / 2
        flipped, runs = numpy.unique(drawn(generator, 300, 0.6, lost, gained, 3000)[:, 1:3], axis=0, return_counts=True)
        shown = sum(n for (a, b), n in zip(flipped, runs, strict=True) if mcnemar_p(int(a), int(b)) <= LEVEL) / 3000
        assert power_of_mcnemar(300, flips, change) == pytest.approx(shown, abs=0.035)
    assert power_of_mcnemar(300, 0.1, 0.0) <= LEVEL


# ---------------------------------------------------------------- what so many items could have shown


def test_without_flips_the_smallest_change_needs_six_one_way():
    """2 × 0.5⁶ = 0.031 is the first below 5 %, so 80 % of the time six items must flip."""
    change = smallest_detectable_change(320, 0)
    assert binom.sf(5, 320, change) == pytest.approx(POWER, abs=1e-4)


def test_the_smallest_change_has_80_percent_power_and_less_has_less():
    for items, flips in ((320, 15), (1000, 200), (100, 30)):
        change = smallest_detectable_change(items, flips)
        share = max(flips / items, change)
        assert power_of_mcnemar(items, share, change) == pytest.approx(POWER, abs=0.01)
        assert power_of_mcnemar(items, max(flips / items, 0.9 * change), 0.9 * change) < POWER


def test_more_items_show_less_and_more_flips_hide_more():
    assert smallest_detectable_change(1000, 50) < smallest_detectable_change(300, 15)
    assert smallest_detectable_change(300, 15) < smallest_detectable_change(300, 60)
    assert smallest_detectable_change(300, 15) < smallest_detectable_change(300, 15, LEVEL / 12)


def test_five_items_show_nothing():
    assert smallest_detectable_change(5, 2) is None  # all five one way: p = 0.06
    assert smallest_detectable_change(6, 2) is not None


# ---------------------------------------------------------------- several comparisons


def test_comparisons_are_corrected_for_their_number():
    figures = compare([Pairs(200, 11, 4, 105)]) | {"items": 320}
    strong = compare([Pairs(180, 31, 4, 105)]) | {"items": 320}
    family = corrected({("nf4", "a"): figures, ("awq", "a"): strong, ("int8", "a"): figures})
    assert family["awq", "a"]["mcnemar_p_holm"] == pytest.approx(3 * strong["mcnemar_p"])
    assert family["nf4", "a"]["mcnemar_p_holm"] == pytest.approx(2 * figures["mcnemar_p"])
    assert family["nf4", "a"]["smallest_detectable_difference_corrected"] == smallest_detectable_change(
        320, 15, LEVEL / 3
    )
    assert corrected({}) == {}


def test_figures_of_one_task_and_of_several():
    one = compare([Pairs(200, 11, 4, 105)])
    assert one["accuracy_change"] == pytest.approx(-7 / 320)
    assert one["recovery"] == pytest.approx(204 / 211)
    assert (one["flips"], one["flips_right_to_wrong"], one["flips_wrong_to_right"]) == (15, 11, 4)
    two = compare([Pairs(200, 11, 4, 105), Pairs(10, 0, 5, 5)])
    assert two["accuracy_change"] == pytest.approx((-7 / 320 + 5 / 20) / 2)
    assert (two["flips_right_to_wrong"], two["flips_wrong_to_right"]) == (11, 9)
    assert two["mcnemar_p"] == mcnemar_p(11, 9)
