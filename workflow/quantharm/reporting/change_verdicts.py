"""Verdicts of changes that no scale judges: times, rates, lengths."""

from quantharm.common.records.parts import Repeated
from quantharm.reporting.format import MISSING, Bounds, interval, percent
from quantharm.reporting.verdicts import Verdict

PAIRED = "the 95 % interval of the change, paired by prompt, excludes zero"


def change_verdict(
    change: float | None, ci95: Bounds, rises: str, falls: str, decimals: int = 1, rule: str = PAIRED
) -> Verdict:
    """A change in percent that is neither good nor bad by a scale: `rises` or `falls`, or no measurable change."""
    if change is None:
        return Verdict("unknown", "not measured", MISSING, rule)
    figure = f"{percent(change, decimals)} {interval(ci95, lambda v: percent(v, decimals))}".strip()
    if ci95 is None:
        return Verdict("unknown", "not judged: too few values for an interval", figure, rule)
    if ci95[0] <= 0 <= ci95[1]:
        return Verdict("none", "no measurable change", figure, rule)
    up = ci95[0] > 0
    return Verdict("rises" if up else "falls", rises if up else falls, figure, rule)


def unsteadiness(timing: Repeated) -> float:
    """Width of the median's 95 % interval in percent of the median; timing: {median, ci95}. 0 without an interval."""
    low, high = timing["ci95"] or (timing["median"],) * 2
    return 100 * (high - low) / timing["median"]


def speed_verdict(
    change: Verdict, timings: list[Repeated], limit: float, waited: float = 0.0, most_waited: float = 100.0
) -> Verdict:
    """No verdict where the repetitions of one side scatter so much that something else was being timed too.

    Nor where it waited for processors that other programs had, in percent of its time: that slows one process evenly.
    """
    if waited > most_waited:
        rule = f"the timed process waits at most {most_waited:g} % of its time for a processor; {change.rule}"
        words = f"not judged: other programs had the processors {waited:.0f} % of the time"
        return Verdict("unknown", words, change.figure, rule)
    widest = max(map(unsteadiness, timings))
    if widest <= limit:
        return change
    rule = f"the medians' intervals are at most {limit:g} % wide; {change.rule}"
    return Verdict("unknown", f"not judged: unsteady timing (interval {widest:.0f} % wide)", change.figure, rule)
