"""Medians of repeated timings, and ratios of two of them, with 95 % intervals."""

import numpy
from numpy.typing import ArrayLike
from scipy.special import bdtr

from quantharm.common.records.parts import Repeated
from quantharm.common.statistics import CONFIDENCE, Bounds, listed


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

    Built on a logarithmic scale from the two medians' intervals (MOVER: Donner and Zou 2012, Statistical Methods in
    Medical Research 21:347). spread: half-width in ln by which both sides vary between processes; added in quadrature.
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


def describe(values: ArrayLike) -> Repeated:
    """{median, p90, ci95 (of the median), values} of repeated timings."""
    array = numpy.asarray(values, dtype=numpy.float64)
    return {
        "median": float(numpy.median(array)),
        "p90": float(numpy.quantile(array, 0.9)),
        "ci95": median_interval(array),
        "values": [float(v) for v in array],
    }
