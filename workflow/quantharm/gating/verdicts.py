"""Verdicts on a figure and its limit: pass, breach, undecided or not measured.

A figure of a sample passes with its whole 95 % interval and breaches with its whole interval; an interval that holds
the limit is undecided. So a true value that is at the limit passes, or breaches, in at most 2.5 % of runs each.
"""

import math
from dataclasses import dataclass
from typing import TypedDict

from quantharm.config.entries import Budget
from quantharm.gating.limits import Limit, kind_of
from quantharm.reporting.format import Bounds

PASS, BREACH, UNDECIDED, NOT_MEASURED = "pass", "breach", "undecided", "not measured"


@dataclass(frozen=True)
class Figure:
    """The figure that a limit is on."""

    value: float | None
    ci95: Bounds = None
    counted: int | None = None  # of what the interval is over
    of: str = ""  # prompts, windows, items, repetitions
    exact: bool = False  # read or counted, not of a sample: it needs no interval
    floor: float = 0.0  # a value up to here says nothing, so no breach rests on it
    missing: str = ""  # why there is no value
    at_least: bool = False  # the value is a lower bound: it may breach a limit and never shows that one is kept
    resolution: str = ""  # what so many can show at all


class Line(TypedDict):
    """One limit on one cell, as in budget.json."""

    model: str
    method: str | None  # None: the whole model
    limit: str  # key in the config's budget; `worse.<key>` against an earlier run
    subject: str | None  # a category
    value: float | None
    ci95: Bounds
    counted: int | None
    of: str
    bound: float | None
    at_most: bool
    verdict: str
    reason: str
    accepted: bool  # by the config's `undecided` and `not_measured`


def judge(limit: Limit, figure: Figure, at_most: bool) -> tuple[str, str]:
    """(verdict, reason)."""
    if figure.value is None:
        return NOT_MEASURED, figure.missing
    low, high = (figure.value, figure.value) if figure.exact else figure.ci95 or (-math.inf, math.inf)
    high = math.inf if figure.at_least else high
    if not at_most:
        low, high = -high, -low
    bound = limit.bound if at_most else -limit.bound
    if high <= bound:
        return PASS, ""
    if low > (max(bound, figure.floor) if at_most else bound):
        return BREACH, "" if figure.exact else "the whole interval is beyond the limit"
    if low > bound:
        return UNDECIDED, f"other hardware, or a second run, may change as much as {figure.floor:.2g}"
    if figure.at_least:
        return UNDECIDED, "the figure is a lower bound, from the few tokens that the server shows"
    if figure.ci95 is None:
        return UNDECIDED, f"too few {figure.of or 'values'} for an interval"
    more = enough(limit.bound, figure.value, figure.ci95, figure.counted, figure.of)
    return UNDECIDED, f"the interval holds the limit{more}{figure.resolution}"


def enough(bound: float, value: float, ci95: list[float], counted: int | None, of: str) -> str:
    """The number that would tell: half an interval shrinks with the root of their number. A rough guess, or nothing."""
    distance = abs(value - bound)
    towards = ci95[0] if value > bound else ci95[1]
    if not counted or distance == 0:
        return ""
    needed = counted * ((towards - value) / distance) ** 2
    if not counted < needed < 1e6:  # beyond, nobody will
        return ""
    digits = 10 ** max(0, math.floor(math.log10(needed)) - 1)
    return f"; about {math.ceil(needed / digits - 1e-6) * digits:,} {of} would tell if the figure stays"


def line(model: str, method: str, limit: Limit, figure: Figure, budget: Budget) -> Line:
    """The line of one limit on one cell; budget: decides which verdicts are accepted."""
    at_most = kind_of(limit.key).at_most
    verdict, reason = judge(limit, figure, at_most)
    return Line(
        model=model,
        method=method,
        limit=limit.key,
        subject=limit.subject,
        value=figure.value,
        ci95=figure.ci95,
        counted=figure.counted,
        of=figure.of,
        bound=limit.bound,
        at_most=at_most,
        verdict=verdict,
        reason=reason,
        accepted=is_accepted(verdict, budget),
    )


def is_accepted(verdict: str, budget: Budget) -> bool:
    """Whether the gate passes with a verdict."""
    allowed = {UNDECIDED: budget["undecided"], NOT_MEASURED: budget["not_measured"]}
    return verdict == PASS or allowed.get(verdict) == "pass"
