"""95 % intervals of shares, and of the change of a share over the same prompts."""

import numpy
from scipy.special import betaincinv, ndtri

from quantharm.common.statistics import CONFIDENCE, Bounds, listed


def paired_share_interval(gained: int, lost: int, total: int) -> Bounds:
    """Interval of (gained - lost) / total, the change of a share over the same prompts (Bonett and Price 2012).

    Their adjusted Wald interval adds one prompt to each count, so that no change in few prompts does not count as
    certainty.
    """
    if total < 2:
        return None
    change = (gained - lost) / (total + 2)
    half = ndtri(0.5 + CONFIDENCE / 2) * numpy.sqrt((gained + lost + 2) / (total + 2) - change**2)
    half /= numpy.sqrt(total + 2)
    return listed(max(-1.0, change - half), min(1.0, change + half))


def share_interval(part: int, whole: int) -> Bounds:
    """95 % interval of a share (Clopper and Pearson 1934); covers with few values, and where none or all count."""
    tail = (1 - CONFIDENCE) / 2
    low = betaincinv(part, whole - part + 1, tail) if part else 0.0
    return listed(low, betaincinv(part + 1, whole - part, 1 - tail) if part < whole else 1.0)
