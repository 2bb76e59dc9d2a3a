"""checks.json: the checks that a cell passed or failed."""

from typing import Literal, TypedDict

from quantharm.common.records.parts import Finished
from quantharm.common.records.quantization import CalibrationReached


class CheckRecord(TypedDict):
    name: str
    status: Literal["pass", "fail", "skipped"]
    value: float | str | None  # measured; NaN and infinity as text
    limit: float | str | None  # with which the value is compared
    explanation: str


class PromptCoverage(TypedDict):
    """Share of tokens that the calibration samples hold."""

    coverage_by_category: dict[str, float | None]  # of the prompts' tokens
    template_coverage: float | None  # of the chat template's own tokens


class CalibrationEvidence(CalibrationReached, PromptCoverage):
    overlaps: int  # word sequences shared with the evaluation text or the prompts
    nll_mean_nats: float  # -ln p of the samples' tokens, by the finished cell
    text_nll_mean_nats: float  # the same of the evaluation text


class ChecksRecord(Finished):
    model: str
    method: str
    checks: list[CheckRecord]
    failed: list[str]  # names of those that failed
    calibration: CalibrationEvidence | None  # null of a method that does not calibrate
