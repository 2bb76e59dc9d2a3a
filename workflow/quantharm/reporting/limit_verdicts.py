"""Verdicts against limits: criteria that pass or fail, and the risk of an application."""

from collections.abc import Mapping

from quantharm.common.records.divergence import CategoryDivergence
from quantharm.reporting.format import MISSING, Bounds, interval, listing, number
from quantharm.reporting.verdicts import Verdict, spans


def within(name: str, value: float | None, bounds: Bounds, low: float, high: float, show, rule: str) -> Verdict:
    """pass: the interval inside [low, high]; fail: outside; undecided: it crosses a limit, or there is none."""
    if value is None:
        return Verdict("unknown", "not measured", MISSING, rule)
    figure = f"{name}{show(value)} {interval(bounds, show)}".strip()
    if bounds is None:
        return Verdict("undecided", "undecided: too few values for an interval", figure, rule)
    a, b = bounds
    if low <= a and b <= high:
        return Verdict("pass", "pass", figure, rule)
    if b < low or a > high:
        return Verdict("fail", "fail", figure, rule)
    return Verdict("undecided", "undecided: the interval crosses the limit", figure, rule)


def largest(
    categories: Mapping[str, CategoryDivergence], names: list[str] | None = None
) -> tuple[str, float, Bounds] | None:
    """(category, KL, interval) of the largest mean KL among some categories; None when none of them was measured."""
    known = {c: v for c, v in categories.items() if names is None or c in names}
    if not known:
        return None
    worst = max(known, key=lambda c: known[c]["kl_nats_mean"])
    return worst, known[worst]["kl_nats_mean"], known[worst]["ci95"]


def risk_verdict(
    categories: Mapping[str, CategoryDivergence], names: list[str], low: float, medium: float, failed: list[str]
) -> Verdict:
    """Risk of using a method for an application that rests on some prompt categories."""
    rule = f"largest KL of {listing(names)}: below {low:g} nats low, below {medium:g} medium, else high"
    if missing := [name for name in names if name not in categories]:
        return Verdict("unknown", f"not measured: {listing(missing)}", MISSING, rule)
    worst = largest(categories, names)
    if worst is None:
        return Verdict("unknown", "not measured: no category is named", MISSING, rule)
    category, value, bounds = worst
    figure = f"{number(value)} nats {interval(bounds)}".strip() + f" in {category}"
    if failed:
        return Verdict("failed", "not assessed: failed checks", figure, rule)

    def risk(kl: float) -> str:
        return "low" if kl < low else "medium" if kl < medium else "high"

    intervals = [categories[name]["ci95"] for name in names]
    if None in intervals:
        words = f"undecided: {risk(value)} by the figure, too few prompts for an interval"
        return Verdict("undecided", words, figure, rule)
    low_end, high_end = (risk(max(bounds)) for bounds in zip(*intervals, strict=True))  # the largest of either end
    span = low_end, high_end
    return Verdict(f"risk-{risk(value)}", risk(value) + spans(*span), figure, rule, span)
