"""checks.json: whether a cell's numbers may be believed."""

from typing import Literal, TypedDict

from quantharm.common.records.parts import Finished
from quantharm.common.records.quantization import CalibrationReached


class CheckRecord(TypedDict):
    name: str
    status: Literal["pass", "fail", "skipped"]
    value: float | str | None  # what was measured; as a text where it is no number
    limit: float | str | None  # what it is compared with
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
