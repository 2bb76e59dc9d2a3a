"""Ratios of sums over windows, such as losses over tokens, with 95 % intervals by a jackknife."""

from collections.abc import Callable

import numpy
from numpy.typing import ArrayLike

from quantharm.common.statistics import Bounds, listed, two_sided


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


def weighted_mean_interval(
    sums: ArrayLike, counts: ArrayLike, transform: Callable[[numpy.ndarray], numpy.ndarray] = lambda x: x
) -> Bounds:
    """95 % interval of transform(Σ sums / Σ counts), transform rising; None for fewer than two windows."""
    sums, counts = numpy.asarray(sums, dtype=numpy.float64), numpy.asarray(counts, dtype=numpy.float64)
    if len(sums) < 2:
        return None
    return listed(*map(transform, ratio_interval(sums, counts)))
