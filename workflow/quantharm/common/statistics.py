"""Means and 95 % intervals: scipy's bootstrap over the unit that was sampled (prompts or windows)."""

import numpy
from scipy.stats import bootstrap

RESAMPLES = 9_999
SEED = 0


def interval_95(*samples, statistic) -> list[float] | None:
    """Percentile bootstrap interval (Efron 1979) of statistic(*samples, axis), each sample resampled on its own.

    Several samples are strata: categories whose prompts are drawn anew within each. None when a stratum has fewer
    than two values, since nothing is then known of its spread. scipy.stats.bootstrap does the resampling.
    """
    arrays = [numpy.asarray(s, dtype=numpy.float64) for s in samples]
    if any(len(a) < 2 for a in arrays):
        return None
    interval = bootstrap(
        arrays,
        statistic,
        n_resamples=RESAMPLES,
        batch=1_000,
        method="percentile",
        rng=numpy.random.default_rng(SEED),
        vectorized=True,
    ).confidence_interval
    return [float(interval.low), float(interval.high)]


def mean_of_means(*samples, axis=-1):
    """Mean over categories of the category's mean over prompts."""
    return numpy.mean([numpy.mean(sample, axis=axis) for sample in samples], axis=0)


def stratified_mean(strata: list) -> dict:
    """{mean, ci95} of the mean of category means; strata: one sequence of prompt means for each category."""
    return {
        "mean": float(mean_of_means(*[numpy.asarray(s, dtype=numpy.float64) for s in strata])),
        "ci95": interval_95(*strata, statistic=mean_of_means),
    }


def weighted_mean_interval(sums, counts, transform=lambda x: x) -> list[float] | None:
    """95 % interval of transform(Σ sums / Σ counts), windows resampled together with their counts (paired)."""
    sums, counts = numpy.asarray(sums, dtype=numpy.float64), numpy.asarray(counts, dtype=numpy.float64)
    if len(sums) < 2:
        return None

    def ratio(s, c, axis=-1):
        return transform(numpy.sum(s, axis=axis) / numpy.sum(c, axis=axis))

    interval = bootstrap(
        (sums, counts),
        ratio,
        n_resamples=RESAMPLES,
        batch=1_000,
        method="percentile",
        paired=True,
        rng=numpy.random.default_rng(SEED),
        vectorized=True,
    ).confidence_interval
    return [float(interval.low), float(interval.high)]


def describe(values) -> dict:
    """{median, p90, ci95 (of the median), values} of repeated timings."""
    array = numpy.asarray(values, dtype=numpy.float64)
    return {
        "median": float(numpy.median(array)),
        "p90": float(numpy.quantile(array, 0.9)),
        "ci95": interval_95(array, statistic=numpy.median),
        "values": [float(v) for v in array],
    }
