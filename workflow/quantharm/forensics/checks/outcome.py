"""The outcome of a check, as checks.json holds it."""

import math
from typing import Literal

from quantharm.common.records.checks import CheckRecord


def outcome(name: str, passed: bool | None, value: float | None, limit: float | None, explanation: str) -> CheckRecord:
    """The record of one check; `passed` is None where it was skipped. NaN and infinity become text, for JSON."""
    status: Literal["pass", "fail", "skipped"] = "skipped" if passed is None else "pass" if passed else "fail"
    stated = value if value is None or math.isfinite(value) else str(value)
    return {"name": name, "status": status, "value": stated, "limit": limit, "explanation": explanation}
