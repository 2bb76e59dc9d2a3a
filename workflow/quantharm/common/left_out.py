"""Cells that a summary and a report lack, because a job failed: which, at which stage, and why."""

from pathlib import Path
from typing import TypedDict

from quantharm.common.constants import BASELINE

LONGEST_REASON = 600  # characters
INTEGRITY = "integrity"  # a cell can be compared without this stage alone


class LeftOut(TypedDict):
    """An entry of `left_out` in summary.json."""

    model: str
    method: str | None  # None: the whole model
    stage: str  # that failed, or was not reached
    reason: str  # the last line of its log
    log: str | None  # the file; None where no job failed
    compared: bool  # whether the cell's row is there all the same, without its integrity


def reason_in(log: Path, began: float) -> str:
    """The reason why a stage failed: the last line of its log, a sentence where the user can mend the fault.

    began: time of the run, seconds since the epoch; an older log is of another run.
    """
    if not log.is_file() or log.stat().st_mtime < began:
        return "its job ended before the stage began"
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    if not lines:
        return "its job ended without a word, as it does when it is killed or out of memory or time"
    return lines[-1].removeprefix("error: ")[:LONGEST_REASON]


def without_weights(model: str, method: str, reason: str) -> LeftOut:
    """The entry of a cell whose weights are behind an address; it is compared without the stages that need them."""
    return LeftOut(model=model, method=method, stage=INTEGRITY, reason=reason, log=None, compared=True)


def without(method: str, reason: str) -> str:
    """The reason why a cell whose comparison with another failed was not finished."""
    return f"it has no {method} to be compared with: {reason}"


def without_baseline(left_out: list[LeftOut], model: str, methods: list[str]) -> list[LeftOut]:
    """Adds the finished cells of a model whose baseline is left out, as they have nothing to be compared with."""
    absent = {entry["method"]: entry for entry in left_out if entry["model"] == model and not entry["compared"]}
    if BASELINE not in absent:
        return left_out
    cause = absent[BASELINE]
    kept = [entry for entry in left_out if entry["model"] != model or entry["method"] in absent]
    return kept + [
        {**cause, "method": method, "reason": without(BASELINE, cause["reason"])}
        for method in methods
        if method not in absent
    ]


def sentence(entry: LeftOut) -> str:
    """`nf4: its stage quantize failed: the disk is full`"""
    lacks = "its integrity is missing: " if entry["compared"] else ""
    outcome = "was not run" if entry["log"] is None else "failed"
    return f"{lacks}stage {entry['stage']} {outcome}: {entry['reason']}"


def name(entry: LeftOut) -> str:
    """`reference × nf4`, or the model alone where all of it is left out."""
    return entry["model"] if entry["method"] is None else f"{entry['model']} × {entry['method']}"


def line(entry: LeftOut) -> str:
    """`reference × nf4: stage quantize failed: the disk is full (results/logs/quantize/reference/nf4.log)`"""
    log = f" ({entry['log']})" if entry["log"] else ""
    return f"{name(entry)}: {sentence(entry)}{log}"
