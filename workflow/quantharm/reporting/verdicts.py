"""Words from numbers: every verdict of the report is a function of figures and of limits in the config.

A verdict carries the figure with its 95 % interval and the rule that was applied, so that a reader can disagree.
"""

from dataclasses import dataclass
from typing import Any

from quantharm.reporting.format import MISSING, interval, listing, number, percent

LEVELS = ("negligible", "low", "moderate", "high")
HARM = {"none": "no measurable", "negligible": "negligible", "low": "low", "moderate": "moderate", "high": "severe"}
Limits = dict[str, float]  # {negligible, low, moderate}: each level's upper limit; at or above the last it is high
Bounds = list[float] | None


@dataclass(frozen=True)
class Verdict:
    """`level` orders and colours: reference, none, one of LEVELS, pass, fail, undecided, unknown or failed."""

    level: str
    words: str
    figure: str
    rule: str
    span: tuple[str, str] | None = None  # levels of the interval's ends


def not_judged(verdict: Verdict) -> Verdict:
    """The same figure without a judgement: what random weights say has no quality."""
    return Verdict("unknown", "not judged: synthetic weights", verdict.figure, "random weights have no quality")


def level_of(value: float, limits: Limits) -> str:
    """The first level whose upper limit is above the value."""
    return next((level for level in LEVELS[:-1] if value < limits[level]), LEVELS[-1])


def scale(limits: Limits, unit: str = "") -> str:
    """The rule of a scale in words."""
    a, b, c = (f"{limits[level]:g}{unit}" for level in LEVELS[:-1])
    return f"below {a} negligible, {a} to {b} low, {b} to {c} moderate, from {c} on high"


def spans(low: str, high: str) -> str:
    """What an interval says beyond its figure's level."""
    return f", interval {low} to {high}" if low != high else ""


def perplexity_verdict(change: float, ci95: Bounds, limits: Limits) -> Verdict:
    """change: ΔPPL in percent of the baseline's, ci95 its paired interval."""
    figure = f"{percent(change)} {interval(ci95, percent)}".strip()
    rule = f"{scale(limits, ' %')}; an interval that holds zero: no measurable change"
    if ci95 is None:
        level = level_of(max(change, 0.0), limits)
        return Verdict(level, f"{level}, without an interval (too few windows)", figure, rule)
    if ci95[0] <= 0 <= ci95[1]:
        return Verdict("none", "no measurable change", figure, rule)
    if ci95[1] < 0:
        return Verdict("none", "measurably lower than the baseline's", figure, rule)
    level = level_of(change, limits)
    span = level_of(ci95[0], limits), level_of(ci95[1], limits)
    return Verdict(level, level + spans(*span), figure, rule, span)


def kl_verdict(mean: float, ci95: Bounds, floor: float, floor_factor: float, limits: Limits) -> Verdict:
    """mean: nats; floor: the baseline against its own store, which is as small as this measurement can see."""
    figure = f"{number(mean)} nats {interval(ci95)}".strip()
    rule = f"{scale(limits, ' nats')}; up to {floor_factor:g} × the noise floor of {number(floor)}: at the noise floor"
    if mean <= floor_factor * floor:
        return Verdict("none", "at the noise floor: says nothing about quality", figure, rule)
    level = level_of(mean, limits)
    low, high = (level_of(b, limits) for b in ci95) if ci95 else (level, level)
    return Verdict(level, level + spans(low, high), figure, rule, (low, high))


def change_verdict(change: float | None, ci95: Bounds, rises: str, falls: str, decimals: int = 1) -> Verdict:
    """A change in percent that is neither good nor bad by a scale: `rises` or `falls`, or no measurable change."""
    rule = "the 95 % interval of the paired change excludes zero"
    if change is None:
        return Verdict("unknown", "not measured", MISSING, rule)
    figure = f"{percent(change, decimals)} {interval(ci95, lambda v: percent(v, decimals))}".strip()
    if ci95 is None:
        return Verdict("unknown", f"{rises if change > 0 else falls}, without an interval", figure, rule)
    if ci95[0] <= 0 <= ci95[1]:
        return Verdict("none", "no measurable change", figure, rule)
    return Verdict("rises" if change > 0 else "falls", rises if change > 0 else falls, figure, rule)


def unsteadiness(timing: dict[str, Any]) -> float:
    """Width of the median's 95 % interval in percent of the median; timing: {median, ci95}. 0 without an interval."""
    low, high = timing["ci95"] or (timing["median"],) * 2
    return 100 * (high - low) / timing["median"]


def speed_verdict(change: Verdict, timings: list[dict[str, Any]], limit: float) -> Verdict:
    """No verdict where the repetitions of one side scatter so much that something else was being timed too."""
    widest = max(map(unsteadiness, timings))
    if widest <= limit:
        return change
    rule = f"the medians' intervals are at most {limit:g} % wide; {change.rule}"
    return Verdict("unknown", f"not judged: unsteady timing (interval {widest:.0f} % wide)", change.figure, rule)


def harm_verdict(perplexity: Verdict, kl: Verdict, failed: list[str]) -> Verdict:
    """The worse of the two verdicts, at the upper end of the intervals; none for a cell that failed a check."""
    figure = f"perplexity {perplexity.figure}; KL {kl.figure}"
    rule = "the worse of the two levels, from the lower to the upper ends of the intervals; a failed check: no verdict"
    if failed:
        return Verdict("failed", "not to be believed", f"failed {listing(failed)}", rule)
    if "unknown" in (perplexity.level, kl.level):
        return Verdict("unknown", next(x.words for x in (perplexity, kl) if x.level == "unknown"), figure, rule)
    order = ("none", *LEVELS).index
    ends = [verdict.span or (verdict.level, verdict.level) for verdict in (perplexity, kl)]
    low, high = (max((end[i] for end in ends), key=order) for i in (0, 1))
    words = HARM[low] if low == high else f"{HARM[low]} to {HARM[high]}"
    return Verdict(high, f"{words} harm", figure, rule, (low, high))


def within(name: str, value: float | None, bounds: Bounds, low: float, high: float, show, rule: str) -> Verdict:
    """pass: figure and interval inside [low, high]; fail: both outside; undecided: the interval crosses a limit."""
    if value is None:
        return Verdict("unknown", "not measured", MISSING, rule)
    a, b = bounds or (value, value)
    figure = f"{name}{show(value)} {interval(bounds, show)}".strip()
    if low <= a and b <= high:
        return Verdict("pass", "pass", figure, rule)
    if b < low or a > high:
        return Verdict("fail", "fail", figure, rule)
    return Verdict("undecided", "undecided: the interval crosses the limit", figure, rule)


def largest(categories: dict[str, dict[str, Any]], names: list[str] | None = None) -> tuple[str, float, Bounds] | None:
    """(category, KL, interval) of the largest mean KL among some categories; None when none of them was measured."""
    known = {c: v for c, v in categories.items() if names is None or c in names}
    if not known:
        return None
    worst = max(known, key=lambda c: known[c]["kl_nats_mean"])
    return worst, known[worst]["kl_nats_mean"], known[worst]["ci95"]


def risk_verdict(
    categories: dict[str, dict[str, Any]], names: list[str], low: float, medium: float, failed: list[str]
) -> Verdict:
    """Risk of using a method for an application that rests on some prompt categories."""
    rule = f"largest KL of {listing(names)}: below {low:g} nats low, below {medium:g} medium, else high"
    worst = largest(categories, names)
    if worst is None:
        return Verdict("unknown", "not measured", MISSING, rule)
    category, value, bounds = worst
    figure = f"{number(value)} nats {interval(bounds)}".strip() + f" in {category}"
    if failed:
        return Verdict("failed", "not assessed: failed checks", figure, rule)

    def risk(kl: float) -> str:
        return "low" if kl < low else "medium" if kl < medium else "high"

    span = (risk(bounds[0]), risk(bounds[1])) if bounds else (risk(value),) * 2
    return Verdict(f"risk-{risk(value)}", risk(value) + spans(*span), figure, rule, span)
