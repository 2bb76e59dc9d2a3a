"""Right answers of a method and of its baseline over the same items: accuracy, recovery, flips, power.

A task's answers are a 2 × 2 table (Pairs). The figure for several tasks is the mean of their accuracies, with equal
weight. tests/unit/common/test_accuracy.py and tests/benchmark/task_statistics.py show the coverage of the intervals and
the error rate of the test.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy
from numpy.typing import ArrayLike
from scipy.special import bdtr, bdtrik, gammaln, ndtri, xlog1py, xlogy

from quantharm.common.records.tasks import AllTasks, OneTask, TaskComparison
from quantharm.common.statistics import CONFIDENCE, Bounds, holm, listed

LEVEL = 1 - CONFIDENCE
POWER = 0.8
Z = ndtri(1 - LEVEL / 2)  # 1.96
ADDED_FLIPS = 1  # item added to the flips each way, so that no flip in few items does not count as certainty
BISECTIONS = 30
FAR = 7  # standard deviations from the expected number of flips; more distant numbers are left out


class Pairs(NamedTuple):
    """Numbers of items, by whether the baseline and the method answered right."""

    both: int
    lost: int  # right in the baseline, wrong in the method
    gained: int  # the other way round
    neither: int

    @property
    def items(self) -> int:
        return sum(self)

    @property
    def accuracy(self) -> float:
        return (self.both + self.gained) / self.items

    @property
    def baseline_accuracy(self) -> float:
        return (self.both + self.lost) / self.items


def pairs_of(mine: ArrayLike, reference: ArrayLike) -> Pairs:
    """Pairs of two sequences of right (true) and wrong answers to the same items."""
    now, before = numpy.asarray(mine, dtype=bool), numpy.asarray(reference, dtype=bool)
    return Pairs(*(int(part.sum()) for part in (now & before, ~now & before, now & ~before, ~now & ~before)))


def accuracy_interval(right: Sequence[int], items: Sequence[int]) -> list[float]:
    """95 % interval of the mean, over tasks, of the share of right answers; right, items: one number a task.

    Wilson's (1927) for one task; several are combined by their distances from the estimate (MOVER: Zou and Donner 2008,
    Statistics in Medicine 27:1693).
    """
    shares = numpy.divide(right, items)
    z2 = Z**2 / numpy.asarray(items)
    centre = (shares + z2 / 2) / (1 + z2)  # [tasks]
    half = numpy.sqrt(z2 * shares * (1 - shares) + z2**2 / 4) / (1 + z2)
    mean, tasks = shares.mean(), len(shares)
    down = numpy.sqrt(((shares - centre + half) ** 2).sum())
    up = numpy.sqrt(((centre + half - shares) ** 2).sum())
    return listed(mean - down / tasks, mean + up / tasks)


def change_interval(tables: Sequence[Pairs]) -> list[float]:
    """95 % interval of the mean change of accuracy over tasks.

    The variance in each task is that of the adjusted Wald interval (Bonett and Price 2012), which adds an item to the
    flips each way.
    """
    n = numpy.array([t.items + 2 for t in tables])
    gained, lost = numpy.array([t.gained + 1 for t in tables]) / n, numpy.array([t.lost + 1 for t in tables]) / n
    variance = ((gained + lost - (gained - lost) ** 2) / n).sum() / len(tables) ** 2
    half, change = Z * numpy.sqrt(variance), (gained - lost).mean()
    return listed(max(-1.0, change - half), min(1.0, change + half))


def recovery(tables: Sequence[Pairs]) -> float | None:
    """Mean accuracy of the method ÷ that of the baseline; None where the baseline has nothing right."""
    over = sum(t.baseline_accuracy for t in tables)
    return sum(t.accuracy for t in tables) / over if over else None


def recovery_interval(tables: Sequence[Pairs]) -> Bounds:
    """95 % interval of recovery(): Fieller's (1954) for paired answers, with ADDED_FLIPS in each task.

    All ratios r for which the mean of (mine - r × reference) over the items is within 1.96 standard errors of zero.
    None where the baseline's accuracy cannot be distinguished from zero, since the ratio may then be anything.
    """
    counts = numpy.add(tables, [0, ADDED_FLIPS, ADDED_FLIPS, 0])  # [tasks, 4]
    n = counts.sum(1)
    both, lost, gained = counts.T[:3] / n
    mine, reference = both + gained, both + lost
    over = reference.sum() ** 2 - Z**2 * (reference * (1 - reference) / n).sum()
    if over <= 0:
        return None
    middle = mine.sum() * reference.sum() - Z**2 * ((both - mine * reference) / n).sum()
    square = mine.sum() ** 2 - Z**2 * (mine * (1 - mine) / n).sum()
    half = numpy.sqrt(max(0.0, middle**2 - over * square))
    return listed(max(0.0, (middle - half) / over), (middle + half) / over)


def mcnemar_p(lost: int, gained: int) -> float:
    """Exact two-sided p-value of equal chances to flip either way (McNemar 1947); 1 without flips."""
    return min(1.0, 2 * float(bdtr(min(lost, gained), lost + gained, 0.5)))


def fewest_either_way(flips: numpy.ndarray, level: float) -> numpy.ndarray:
    """The largest number of flips in the rarer direction at which mcnemar_p() is at most `level`; -1 where none is."""
    near = numpy.nan_to_num(numpy.floor(bdtrik(level / 2, flips, 0.5)), nan=0).astype(int)
    candidates = near[:, None] + [-1, 0, 1]  # the inverse of a step function is off by one at its steps
    shown = (candidates >= 0) & (bdtr(numpy.maximum(candidates, 0), flips[:, None], 0.5) <= level / 2)
    return numpy.where(shown, candidates, -1).max(1)


def power_of_mcnemar(items: int, flips: float, change: float, level: float = LEVEL) -> float:
    """Probability that mcnemar_p() is at most `level`.

    flips: share of the items that flip. change: change of accuracy, a share of the items, at most `flips`.
    """
    spread = FAR * numpy.sqrt(items * flips * (1 - flips)) + FAR
    numbers = numpy.arange(max(1, int(items * flips - spread)), min(items, int(items * flips + spread)) + 1)  # of flips
    fewest = fewest_either_way(numbers, level)
    one_way = (1 + change / flips) / 2
    rarer = numpy.maximum(fewest, 0)
    shown = numpy.where(fewest < 0, 0.0, bdtr(rarer, numbers, one_way) + bdtr(rarer, numbers, 1 - one_way))
    chance = gammaln(items + 1) - gammaln(numbers + 1) - gammaln(items - numbers + 1)  # of so many flips
    chance += xlogy(numbers, flips) + xlog1py(items - numbers, -flips)
    return float((numpy.exp(chance) * shown).sum())


def smallest_detectable_change(items: int, flips: int, level: float = LEVEL) -> float | None:
    """The change of accuracy, a share of the items, that these items and flips show with 80 % probability.

    Beyond the share of flips, a change means that all flips go one way. None where even a change of every item would
    not be shown.
    """
    share = flips / items
    if power_of_mcnemar(items, 1.0, 1.0, level) < POWER:
        return None
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        change = (low + high) / 2
        shown = power_of_mcnemar(items, max(share, change), change, level) >= POWER
        low, high = (low, change) if shown else (change, high)
    return high


def compare(tables: Sequence[Pairs]) -> TaskComparison:
    """Figures of a method against its baseline over the same items of one task, or of several with equal weight.

    For several tasks, the test and the smallest detectable change are of all their items together.
    """
    whole = Pairs(*(sum(column) for column in zip(*tables, strict=True)))
    return {
        "baseline_accuracy": sum(t.baseline_accuracy for t in tables) / len(tables),
        "accuracy_change": sum(t.accuracy - t.baseline_accuracy for t in tables) / len(tables),
        "accuracy_change_ci95": change_interval(tables),
        "recovery": recovery(tables),
        "recovery_ci95": recovery_interval(tables),
        "flips_right_to_wrong": whole.lost,
        "flips_wrong_to_right": whole.gained,
        "flips": whole.lost + whole.gained,
        "mcnemar_p": mcnemar_p(whole.lost, whole.gained),
        "smallest_detectable_difference": smallest_detectable_change(whole.items, whole.lost + whole.gained),
    }


Figures = TypeVar("Figures", OneTask, AllTasks)


def corrected(family: Mapping[Hashable, Figures]) -> dict[Hashable, Figures]:
    """Comparisons of one family, corrected for their number.

    Adds `mcnemar_p_holm`, and `smallest_detectable_difference_corrected` at the level at which Holm's procedure begins,
    5 % ÷ their number.
    """
    p_values = ((key, figures["mcnemar_p"]) for key, figures in family.items())
    adjusted = holm({key: p for key, p in p_values if p is not None})  # a comparison has one
    all_corrected = {}
    for key, figures in family.items():
        flips = figures["flips"]
        assert flips is not None  # a comparison has some
        with_correction = figures.copy()
        with_correction["mcnemar_p_holm"] = adjusted[key]
        with_correction["smallest_detectable_difference_corrected"] = smallest_detectable_change(
            figures["items"], flips, LEVEL / len(family)
        )
        all_corrected[key] = with_correction
    return all_corrected
