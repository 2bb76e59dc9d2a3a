"""Means with 95 % intervals that cover the truth 95 times in 100, with few values as well.

The plain percentile bootstrap does not: it covers 80 % with two prompts in each of twelve categories and half with two
values in all. So intervals are built from Student's t here, from a jackknife in ratios.py, from order statistics in
medians.py, from the binomial distribution in shares.py. tests/unit/common/test_coverage.py shows by simulation what
they cover. A function gives None in place of an interval where nothing short covers.
"""

from collections.abc import Hashable, Mapping
from typing import TypeVar

import numpy
from numpy.typing import ArrayLike
from scipy.special import stdtr, stdtrit  # not scipy.stats, which takes half a second to import

from quantharm.common.records.parts import MeanWithInterval

Bounds = list[float] | None
Key = TypeVar("Key", bound=Hashable)
CONFIDENCE = 0.95
FEWEST_DEGREES = 3  # of freedom: below, an interval of skewed values is wider than anybody can use
FEWEST_POOLED_DEGREES = 8  # of a spread that a category with few prompts takes from all categories
TINY = numpy.finfo(numpy.float64).tiny
LEAST_SHARE = 0.1  # of a stratum's mean; smaller values count as this much in the spread of the logarithms


def two_sided(degrees: ArrayLike) -> numpy.ndarray:
    """Quantile of Student's t at 97.5 %."""
    return stdtrit(degrees, 0.5 + CONFIDENCE / 2)


def listed(low, high) -> list[float]:
    """[low, high] as Python floats."""
    return [float(low), float(high)]


def mean_of_means(*samples, axis=-1):
    """Mean over categories of each category's mean over prompts."""
    return numpy.mean([numpy.mean(sample, axis=axis) for sample in samples], axis=0)


def standard_error(strata: list[numpy.ndarray]) -> tuple[numpy.ndarray, numpy.ndarray]:
    """(standard error, degrees of freedom) of mean_of_means, each stratum with its own variance.

    strata: [..., n] each. Degrees of freedom after Satterthwaite (1946) and Welch (1947).
    """
    parts = [s.var(-1, ddof=1) / s.shape[-1] for s in strata]
    total = numpy.sum(parts, axis=0)
    below = numpy.sum([v**2 / (s.shape[-1] - 1) for v, s in zip(parts, strata, strict=True)], axis=0)
    degrees = numpy.divide(total**2, below, out=numpy.ones_like(total), where=below > 0)
    return numpy.sqrt(total) / len(strata), degrees


def symmetric_interval(strata: list[numpy.ndarray]) -> tuple[numpy.ndarray, numpy.ndarray]:
    """mean ± t × standard error; strata: [..., n] each → ([...], [...])."""
    error, degrees = standard_error(strata)
    half, mean = two_sided(degrees) * error, mean_of_means(*strata)
    return mean - half, mean + half


def log_spreads(strata: list[numpy.ndarray]) -> tuple[list[numpy.ndarray], numpy.ndarray, int]:
    """(variance of the logarithms in each stratum, the variance pooled over the strata, its degrees of freedom).

    strata: [..., n] each, none negative. Values below LEAST_SHARE of their stratum's mean count as that much, so that
    one prompt on which nothing moved does not make the variance unbounded.
    """
    floors = [numpy.maximum(LEAST_SHARE * s.mean(-1, keepdims=True), TINY) for s in strata]
    own = [numpy.log(numpy.maximum(s, f)).var(-1, ddof=1) for s, f in zip(strata, floors, strict=True)]
    degrees = sum(s.shape[-1] - 1 for s in strata)
    pooled = numpy.sum([v * (s.shape[-1] - 1) for v, s in zip(own, strata, strict=True)], axis=0) / degrees
    return own, pooled, degrees


def log_symmetric(mean, variance, degrees: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Interval around a skewed estimate whose logarithm has this variance.

    Its centre is half a variance above ln(mean), since the logarithm of an unbiased estimate is too low by that.
    """
    centre, half = mean * numpy.exp(variance / 2), two_sided(degrees) * numpy.sqrt(variance)
    return centre * numpy.exp(-half), centre * numpy.exp(half)


def positive_interval(strata: list[numpy.ndarray]) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Interval of mean_of_means of skewed values that are never negative, symmetric on a logarithmic scale.

    After Cox's method for the mean of log-normal values, with t in place of the normal quantile (Olsson 2005, Journal
    of Statistics Education 13:1): of one stratum with variance s² of its logarithms, ln(mean) has the variance
    s²/n + s⁴/(2(n - 1)). Here s² is pooled over the strata, whose share of the sum of means weighs it, and the values'
    own relative variance counts where it is greater. strata: [..., n] each → ([...], [...]).
    """
    means = numpy.stack([s.mean(-1) for s in strata], axis=-1)  # [..., strata]
    counts = numpy.array([s.shape[-1] for s in strata])
    _, spread, degrees = log_spreads(strata)  # s²
    weights = means / means.sum(-1, keepdims=True)
    modelled = (weights**2 / counts).sum(-1) * spread + spread**2 / (2 * degrees)
    variance = numpy.maximum((standard_error(strata)[0] / means.mean(-1)) ** 2, modelled)
    return log_symmetric(means.mean(-1), variance, degrees)


def borrowed_intervals(strata: list[numpy.ndarray]) -> list[tuple[numpy.ndarray, numpy.ndarray]]:
    """Interval of each stratum's mean, by the larger of its own variance and that pooled over all strata.

    For strata of two or three skewed values, whose own variance says next to nothing. 95 % of the intervals of a run
    cover, fewer in the strata of the greatest variance. strata: [..., n] each, none negative.
    """
    own, pooled, degrees = log_spreads(strata)
    intervals = []
    for values, spread in zip(strata, own, strict=True):
        s2 = numpy.maximum(spread, pooled)
        intervals.append(log_symmetric(values.mean(-1), s2 / values.shape[-1] + s2**2 / (2 * degrees), degrees))
    return intervals


def mean_interval(strata: list[ArrayLike]) -> Bounds:
    """95 % interval of mean_of_means; strata: one sequence of values for each category.

    Values of one sign are treated as skewed. None with fewer than two values in a category, or fewer than
    FEWEST_DEGREES values beyond one in each: one category by itself needs four.
    """
    arrays = [numpy.asarray(s, dtype=numpy.float64) for s in strata]
    if min(map(len, arrays)) < 2 or sum(len(a) - 1 for a in arrays) < FEWEST_DEGREES:
        return None
    for sign in (1.0, -1.0):
        if all((sign * a).min() >= 0 for a in arrays) and any(a.any() for a in arrays):
            return sorted(sign * bound for bound in listed(*positive_interval([sign * a for a in arrays])))
    return listed(*symmetric_interval(arrays))


def stratified_mean(strata: list[ArrayLike]) -> MeanWithInterval:
    """{mean, ci95} of the mean of category means; strata: one sequence of prompt means for each category."""
    mean = float(mean_of_means(*[numpy.asarray(s, dtype=numpy.float64) for s in strata]))
    return {"mean": mean, "ci95": mean_interval(strata)}


def category_intervals(strata: list[ArrayLike]) -> list[Bounds]:
    """95 % interval of each category's own mean; a category of two or three prompts borrows the others' variance.

    None for such a category where the others have too few prompts as well, or values are negative.
    """
    arrays = [numpy.asarray(s, dtype=numpy.float64) for s in strata]
    intervals = [mean_interval([a]) for a in arrays]
    several = [i for i, a in enumerate(arrays) if len(a) >= 2]
    enough = sum(len(arrays[i]) - 1 for i in several) >= FEWEST_POOLED_DEGREES
    if enough and all(arrays[i].min() >= 0 for i in several):
        for i, bounds in zip(several, borrowed_intervals([arrays[i] for i in several]), strict=True):
            intervals[i] = intervals[i] or listed(*bounds)
    return intervals


def p_value(strata: list[ArrayLike], margin: float = 0.0) -> float:
    """Two-sided p-value of a mean of means, against differing from zero by at most `margin` (Welch's t).

    1 where a category has fewer than two values, since nothing can then be shown.
    """
    arrays = [numpy.asarray(s, dtype=numpy.float64) for s in strata]
    if min(map(len, arrays)) < 2:
        return 1.0
    beyond = abs(float(mean_of_means(*arrays))) - margin
    error, degrees = standard_error(arrays)
    if beyond <= 0:
        return 1.0
    return float(2 * stdtr(degrees, -beyond / error)) if error > 0 else 0.0


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """The p-values adjusted for their number, by the same keys (Holm 1979); those below 0.05 may be claimed."""
    adjusted: dict[Key, float] = {}
    least = 0.0
    for rank, key in enumerate(sorted(p_values, key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[key]))
        adjusted[key] = least
    return {key: adjusted[key] for key in p_values}
