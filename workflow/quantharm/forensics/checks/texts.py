"""The texts: was the cell scored on the same text and prompts as the baseline, and calibrated on another text?"""

from typing import Literal, get_args

from quantharm.common.provenance import computed_differently
from quantharm.common.records.checks import CalibrationEvidence, CheckRecord
from quantharm.common.records.divergence import DivergenceRecord
from quantharm.forensics.checks.outcome import outcome
from quantharm.quantizers import calibration
from quantharm.quantizers.calibration_evidence import TextAndPromptsRecords

TextKey = Literal["dataset_sha256", "tokens_sha256", "protocol"]
PromptsKey = Literal[
    "suite_sha256", "prompts_per_category", "max_new_tokens", "chat_template", "thinking", "prompt_tokens_sha256"
]
ScoringStage = Literal["perplexity", "generation", "divergence"]
SAME_TEXT_KEYS: tuple[TextKey, ...] = get_args(TextKey)
SAME_PROMPTS_KEYS: tuple[PromptsKey, ...] = get_args(PromptsKey)
SCORING_STAGES: tuple[ScoringStage, ...] = get_args(ScoringStage)


class ScoredRecords(TextAndPromptsRecords):
    """A cell's records by the stage that scored it."""

    divergence: DivergenceRecord


def check_same_text(cell: ScoredRecords, baseline: ScoredRecords) -> CheckRecord:
    """Token ids, data, protocol, suite, trace, device, computing, versions and environment equal the baseline's."""
    differing = []
    for text_key in SAME_TEXT_KEYS:
        if cell["perplexity"][text_key] != baseline["perplexity"][text_key]:
            differing.append(f"perplexity {text_key}")
    for prompts_key in SAME_PROMPTS_KEYS:
        if cell["generation"][prompts_key] != baseline["generation"][prompts_key]:
            differing.append(f"generation {prompts_key}")
    if cell["divergence"]["trace_sha256"] != baseline["divergence"]["trace_sha256"]:
        differing.append("trace")
    for stage in SCORING_STAGES:
        mine, reference = cell[stage]["provenance"], baseline[stage]["provenance"]
        for key, (value, other) in computed_differently(mine, reference).items():
            differing.append(f"{stage} {key} ({value!r}, the baseline {other!r})")
        if mine["versions"] != reference["versions"]:
            differing.append(f"{stage} versions")
        value, other = mine.get("environment", {}), reference.get("environment", {})
        if value != other:
            differing.append(f"{stage} environment ({value!r}, the baseline {other!r})")
    return outcome(
        "same_text",
        not differing,
        len(differing),
        0,
        f"differs from the baseline in: {', '.join(differing)}" if differing else "scored as the baseline was",
    )


def check_calibration(evidence: CalibrationEvidence | None) -> CheckRecord:
    """The samples that reached the quantizer; evidence: of calibration_evidence, None without a calibration."""
    if evidence is None:
        return outcome("calibration", None, None, 0, "this method uses no calibration text")
    faults = calibration.faults(evidence)
    ratio = evidence["nll_mean_nats"] / evidence["text_nll_mean_nats"]
    explanation = (
        f"{evidence['samples_reached']} samples and {evidence['tokens_reached']} tokens reached the quantizer, none of "
        f"them shared with the evaluation text or the prompts, {evidence['duplicate_samples']} repeated; the model's "
        f"loss on them is {ratio:.2f} times that on the evaluation text"
    )
    return outcome("calibration", not faults, len(faults), 0, "; ".join(faults) or explanation)
