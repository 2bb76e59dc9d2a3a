"""Verdicts on quality: words that are functions of figures and of limits in the config.

A verdict carries the figure with its 95 % interval and the rule that was applied, so that a reader can disagree.
"""

from dataclasses import dataclass

from quantharm.reporting.format import Bounds, interval, listing, number, percent

LEVELS = ("negligible", "low", "moderate", "high")
HARM = {"none": "no measurable", "negligible": "negligible", "low": "low", "moderate": "moderate", "high": "severe"}
Limits = dict[str, float]  # {negligible, low, moderate}: each level's upper limit; at or above the last it is high


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


def of_lower_bound(verdict: Verdict) -> Verdict:
    """The same of a figure that is a lower bound: what it shows is harm, never that there is none."""
    figure = f"at least {verdict.figure}"
    if verdict.level in ("none", "pass", "risk-low"):
        return Verdict("unknown", "not judged: a lower bound does not show closeness", figure, verdict.rule)
    harmful = verdict.level in ("fail", "risk-high", "unknown", "failed")
    words = verdict.words if harmful else f"at least {verdict.words}"
    return Verdict(verdict.level, words, figure, verdict.rule, verdict.span)


def elsewhere(verdict: Verdict) -> Verdict:
    """A time of a model that is behind an address."""
    words = "not judged: served by another program, on hardware that is not seen"
    return Verdict("unknown", words, verdict.figure, "only what ran on one device is compared")


def level_of(value: float, limits: Limits) -> str:
    """The first level whose upper limit is above the value."""
    return next((level for level in LEVELS[:-1] if value < limits[level]), LEVELS[-1])


def scale(limits: Limits, unit: str = "") -> str:
    """The rule of a scale in words."""
    a, b, c = (f"{limits[level]:g}{unit}" for level in LEVELS[:-1])
    return f"below {a} negligible, {a} to {b} low, {b} to {c} moderate, from {c} on high"


def spans(low: str, high: str) -> str:
    """The words that an interval adds to its figure's level."""
    return f", interval {low} to {high}" if low != high else ""


def other_hardware_percent(kl: float, tokens: int) -> float:
    """ΔPPL in percent that running both cells on another processor explains; kl: nats between two processors.

    The logarithm of the ratio of two models that are this near varies by 2·kl a token (E[(ln p/q)²] ≈ 2·KL), and both
    cells move: 1.96 · √(4·kl / tokens), but no less than kl itself, since ln(PPL ratio) ≈ KL.
    """
    return 100 * max(kl, 1.96 * 2 * (kl / tokens) ** 0.5)


def above(bound: float, floor: float, limits: Limits) -> str:
    """Level of an interval's end: none up to the floor."""
    return "none" if bound <= floor else level_of(bound, limits)


def nothing_measured(words: str, high: str, figure: str, rule: str) -> Verdict:
    """No measurable effect, unless the upper end of the interval reaches a level of its own: then it is undecided."""
    if high in ("none", LEVELS[0]):
        return Verdict("none", words, figure, rule, ("none", "none"))
    return Verdict("undecided", f"{words}, but the interval reaches {high}", figure, rule, ("none", high))


def perplexity_verdict(change: float, ci95: Bounds, limits: Limits, floor: float = 0.0) -> Verdict:
    """change: ΔPPL in percent of the baseline's, ci95 its paired interval; floor: what other hardware changes."""
    figure = f"{percent(change)} {interval(ci95, percent)}".strip()
    rule = f"{scale(limits, ' %')}; an interval that contains zero: no measurable change"
    if floor:
        rule += f"; one within ±{number(floor, 2)} %: differences between processors"
    if ci95 is None:
        level = level_of(max(change, 0.0), limits)
        return Verdict("undecided", f"{level}, too few windows for an interval", figure, rule)
    if ci95[1] < -floor:
        return Verdict("none", "measurably lower than the baseline's", figure, rule, ("none", "none"))
    low, high = (above(bound, floor, limits) for bound in ci95)
    if low == "none":
        held = ci95[0] <= 0 <= ci95[1]
        words = "no measurable change" if held else "no change beyond differences between processors"
        return nothing_measured(words, high, figure, rule)
    level = level_of(change, limits)
    return Verdict(level, level + spans(low, high), figure, rule, (low, high))


def kl_verdict(
    mean: float, ci95: Bounds, floor: float, floor_factor: float, limits: Limits, other_hardware: float = 0.0
) -> Verdict:
    """mean: nats; floor: the baseline against its own store on this device; other_hardware: between two processors."""
    figure = f"{number(mean)} nats {interval(ci95)}".strip()
    own = floor_factor * floor
    rule = f"{scale(limits, ' nats')}; up to {floor_factor:g} × the noise floor of {number(floor)}: at the noise floor"
    if other_hardware > own:
        rule += f"; up to {number(other_hardware, 2)}: differences between processors"
    least = max(own, other_hardware)
    if mean <= least:
        words = "at the noise floor" if mean <= own else "within differences between processors"
        high = above(ci95[1], least, limits) if ci95 else "none"
        return nothing_measured(f"{words}: says nothing about quality", high, figure, rule)
    level = level_of(mean, limits)
    if ci95 is None:
        return Verdict("undecided", f"{level}, too few prompts for an interval", figure, rule)
    low, high = (above(bound, least, limits) for bound in ci95)
    return Verdict(level, level + spans(low, high), figure, rule, (low, high))


def harm_verdict(perplexity: Verdict, kl: Verdict, failed: list[str]) -> Verdict:
    """The worse of the two verdicts, at the upper end of the intervals; none for a cell that failed a check."""
    figure = f"perplexity {perplexity.figure}; KL {kl.figure}"
    rule = (
        "the worse of the two levels, from the lower to the upper ends of the intervals; undecided where they reach "
        "from no measurable harm to a moderate one or more; a failed check: no verdict"
    )
    if failed:
        return Verdict("failed", "not to be believed", f"failed {listing(failed)}", rule)
    if "unknown" in (perplexity.level, kl.level):
        return Verdict("unknown", next(x.words for x in (perplexity, kl) if x.level == "unknown"), figure, rule)
    if perplexity.span is None or kl.span is None:
        return Verdict("undecided", "undecided: too few prompts or windows for an interval", figure, rule)
    order = ("none", *LEVELS).index
    low, high = (max(ends, key=order) for ends in zip(perplexity.span, kl.span, strict=True))
    words = HARM[low] if low == high else f"{HARM[low]} to {HARM[high]}"
    open_ended = low == "none" and high in LEVELS[2:]
    return Verdict("undecided" if open_ended else high, f"{words} harm", figure, rule, (low, high))
