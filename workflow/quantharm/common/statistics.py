"""Means, medians and ratios with 95 % intervals that cover the truth 95 times in 100, with few values as well.

The plain percentile bootstrap does not: it covers 80 % with two prompts in each of twelve categories and half with two
values in all. So intervals are built from Student's t and from order statistics; tests/unit/common/test_coverage.py
shows by simulation what they cover. A function gives None in place of an interval where nothing short covers.
"""

from collections.abc import Callable

import numpy
from numpy.typing import ArrayLike
from scipy.special import (  # not scipy.stats, which takes half a second to import
    bdtr,
    betaincinv,
    ndtri,
    stdtr,
    stdtrit,
)

from quantharm.common.records.parts import MeanWithInterval, Repeated

Bounds = list[float] | None
CONFIDENCE = 0.95
FEWEST_DEGREES = 3  # of freedom: below, an interval of skewed values is wider than anybody can use
FEWEST_POOLED_DEGREES = 8  # of a spread that a category with few prompts takes from all categories
TINY = numpy.finfo(numpy.float64).tiny
LEAST_SHARE = 0.1  # of a stratum's mean; smaller values count as this much in the spread of the logarithms


def two_sided(degrees: ArrayLike) -> numpy.ndarray:
    """Quantile of Student's t at 97.5 %."""
    return stdtrit(degrees, 0.5 + CONFIDENCE / 2)


def listed(low, high) -> list[float]:
    return [float(low), float(high)]


def mean_of_means(*samples, axis=-1):
    """Mean over categories of the category's mean over prompts."""
    return numpy.mean([numpy.mean(sample, axis=axis) for sample in samples], axis=0)


def standard_error(strata: list[numpy.ndarray]) -> tuple[numpy.ndarray, numpy.ndarray]:
    """(standard error, degrees of freedom) of mean_of_means, each stratum with a variance of its own.

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
    """(variance of the logarithms in each stratum, pooled over the strata, degrees of freedom of the pooled one).

    strata: [..., n] each, none negative. Values below LEAST_SHARE of their stratum's mean count as that, so that one
    prompt on which nothing moved does not make a spread endless.
    """
    floors = [numpy.maximum(LEAST_SHARE * s.mean(-1, keepdims=True), TINY) for s in strata]
    own = [numpy.log(numpy.maximum(s, f)).var(-1, ddof=1) for s, f in zip(strata, floors, strict=True)]
    degrees = sum(s.shape[-1] - 1 for s in strata)
    pooled = numpy.sum([v * (s.shape[-1] - 1) for v, s in zip(own, strata, strict=True)], axis=0) / degrees
    return own, pooled, degrees


def log_symmetric(mean, variance, degrees: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Interval about a skewed estimate whose logarithm has this variance.

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
    """Interval of each stratum's mean by the greater of its own spread and that of all strata together.

    For strata of two or three skewed values, whose own spread says next to nothing. 95 % of the intervals of one run
    cover, less in the strata of the greatest spread. strata: [..., n] each, none negative.
    """
    own, pooled, degrees = log_spreads(strata)
    intervals = []
    for values, spread in zip(strata, own, strict=True):
        s2 = numpy.maximum(spread, pooled)
        intervals.append(log_symmetric(values.mean(-1), s2 / values.shape[-1] + s2**2 / (2 * degrees), degrees))
    return intervals


def mean_interval(strata: list[ArrayLike]) -> Bounds:
    """95 % interval of mean_of_means; strata: one sequence of values for each category.

    Values of one sign are taken as skewed. None with fewer than two values in a category, or fewer than
    FEWEST_DEGREES beyond one in each: one category by itself needs four.
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
    """95 % interval of each category's own mean; a category of two or three prompts borrows the others' spread.

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
    """Two-sided p-value of a mean of means that differs from zero by no more than `margin` (Welch's t).

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


def holm(p_values: dict) -> dict:
    """The same keys with p-values adjusted for their number (Holm 1979): all that stay below 0.05 may be claimed."""
    adjusted, least = {}, 0.0
    for rank, key in enumerate(sorted(p_values, key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[key]))
        adjusted[key] = least
    return {key: adjusted[key] for key in p_values}


def jackknife_interval(values: numpy.ndarray, estimate, weights: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """estimate ± t × its jackknife standard error (Tukey 1958; Efron and Stein 1981).

    values: [..., n] estimates with one unit left out; weights: [..., n], what a unit counts. Units of unequal weight
    give fewer degrees of freedom: (Σw²)² / Σw⁴ - 1.
    """
    n = values.shape[-1]
    error = numpy.sqrt((n - 1) / n * ((values - values.mean(-1, keepdims=True)) ** 2).sum(-1))
    degrees = (weights**2).sum(-1) ** 2 / (weights**4).sum(-1) - 1
    half = two_sided(numpy.maximum(degrees, 1.0)) * error
    return estimate - half, estimate + half


def ratio_interval(sums: numpy.ndarray, counts: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Interval of Σ sums / Σ counts over windows; [..., n] both."""
    total, over = sums.sum(-1, keepdims=True), counts.sum(-1, keepdims=True)
    return jackknife_interval((total - sums) / (over - counts), (total / over)[..., 0], counts)


def weighted_mean_interval(sums: ArrayLike, counts: ArrayLike, transform: Callable = lambda x: x) -> Bounds:
    """95 % interval of transform(Σ sums / Σ counts), transform rising; None for fewer than two windows."""
    sums, counts = numpy.asarray(sums, dtype=numpy.float64), numpy.asarray(counts, dtype=numpy.float64)
    if len(sums) < 2:
        return None
    return listed(*map(transform, ratio_interval(sums, counts)))


def median_interval(values: ArrayLike) -> Bounds:
    """Interval of the median between two order statistics: at least 95 % whatever the distribution.

    The r-th smallest and the r-th largest, r as great as the binomial distribution allows (David and Nagaraja 2003,
    Order Statistics, 7.1). None for fewer than six values: the smallest and largest of five cover 93.75 %.
    """
    array = numpy.sort(numpy.asarray(values, dtype=numpy.float64))
    n = len(array)
    rank = max((r for r in range(1, n // 2 + 1) if 2 * bdtr(r - 1, n, 0.5) <= 1 - CONFIDENCE), default=0)
    return listed(array[rank - 1], array[n - rank]) if rank else None


def median_ratio_interval(mine: ArrayLike, reference: ArrayLike, spread: float = 0.0) -> Bounds:
    """95 % interval of median(mine) / median(reference), two sets of positive values that are not paired.

    On a logarithmic scale from the two medians' intervals (MOVER: Donner and Zou 2012, Statistical Methods in Medical
    Research 21:347). spread: half-width in ln that both sides bring whatever was repeated; added in quadrature.
    """
    sides = [(numpy.log(numpy.median(v)), median_interval(v)) for v in (mine, reference)]
    if any(bounds is None for _, bounds in sides):
        return None
    (a, (low_a, high_a)), (b, (low_b, high_b)) = [(m, numpy.log(bounds)) for m, bounds in sides]
    down = numpy.sqrt((a - low_a) ** 2 + (high_b - b) ** 2 + spread**2)
    up = numpy.sqrt((high_a - a) ** 2 + (b - low_b) ** 2 + spread**2)
    return listed(numpy.exp(a - b - down), numpy.exp(a - b + up))


def widened(estimate: float, bounds: Bounds, spread: float) -> Bounds:
    """Bounds of a ratio with a further relative half-width in quadrature; None stays None."""
    if bounds is None:
        return None
    low, high = (numpy.hypot(bound - estimate, estimate * spread) for bound in bounds)
    return listed(estimate - low, estimate + high)


def paired_share_interval(gained: int, lost: int, total: int) -> Bounds:
    """Interval of (gained - lost) / total, the change of a share over the same prompts (Bonett and Price 2012).

    Their adjusted Wald interval adds one prompt to each count, so that no change in few prompts is not certainty.
    """
    if total < 2:
        return None
    change = (gained - lost) / (total + 2)
    half = ndtri(0.5 + CONFIDENCE / 2) * numpy.sqrt((gained + lost + 2) / (total + 2) - change**2)
    half /= numpy.sqrt(total + 2)
    return listed(max(-1.0, change - half), min(1.0, change + half))


def share_interval(part: int, whole: int) -> Bounds:
    """95 % interval of a share; covers with few values, and where none or all count (Clopper and Pearson 1934)."""
    tail = (1 - CONFIDENCE) / 2
    low = betaincinv(part, whole - part + 1, tail) if part else 0.0
    return listed(low, betaincinv(part + 1, whole - part, 1 - tail) if part < whole else 1.0)


def describe(values: ArrayLike) -> Repeated:
    """{median, p90, ci95 (of the median), values} of repeated timings."""
    array = numpy.asarray(values, dtype=numpy.float64)
    return {
        "median": float(numpy.median(array)),
        "p90": float(numpy.quantile(array, 0.9)),
        "ci95": median_interval(array),
        "values": [float(v) for v in array],
    }
