"""EWMA control chart: a running mean that raises an alarm when it leaves limits learned from an undisturbed process.

    z_t = λ x_t + (1 - λ) z_{t-1},  z_0 = μ        alarm where |z_t - μ| > L σ √(λ / (2 - λ) (1 - (1 - λ)^{2t}))

Roberts (1959); with λ = 0.2 and L = 2.962 there is one false alarm in about 500 runs where μ and σ are known and x is
normal (Lucas and Saccucci 1990). Own code, since no maintained Python library has it.
"""

from dataclasses import dataclass

import numpy


@dataclass(frozen=True)
class Limits:
    """Mean and spread of an undisturbed process, and the sensitivity of the chart."""

    mean: float
    standard_deviation: float
    weight: float = 0.2  # λ
    width: float = 2.962  # L


def learn(values, weight: float, width: float) -> Limits:
    """Limits from values of an undisturbed process; raises ValueError where they do not vary."""
    values = numpy.asarray(values, dtype=numpy.float64)
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    if not spread > 1e-9 * abs(values.mean()):  # less is rounding
        raise ValueError("the values do not vary, so no limits can be learned from them")
    return Limits(float(values.mean()), spread, weight, width)


def chart(values, limits: Limits) -> dict[str, numpy.ndarray]:
    """{ewma, low, high, alarm} of each value in order; values: [..., T], each row a process of its own."""
    values = numpy.asarray(values, dtype=numpy.float64)
    weight, ewma, last = limits.weight, numpy.empty_like(values), limits.mean
    for i in range(values.shape[-1]):
        last = weight * values[..., i] + (1 - weight) * last
        ewma[..., i] = last
    t = numpy.arange(1, values.shape[-1] + 1)
    half = limits.standard_deviation * limits.width * numpy.sqrt(weight / (2 - weight) * (1 - (1 - weight) ** (2 * t)))
    low, high = limits.mean - half, limits.mean + half
    return {
        "ewma": ewma,
        "low": numpy.broadcast_to(low, values.shape),
        "high": numpy.broadcast_to(high, values.shape),
        "alarm": (ewma < low) | (ewma > high),
    }


def run_lengths(values, limits: Limits) -> numpy.ndarray:
    """Runs until the first alarm, in each row of [processes, T]; T + 1 where there is none."""
    alarm = chart(values, limits)["alarm"]
    return numpy.where(alarm.any(-1), alarm.argmax(-1) + 1, alarm.shape[-1] + 1)
