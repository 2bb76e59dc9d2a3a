"""The evidence for the check `calibration`: the samples that reached a quantizer, scored by the finished cell."""

from pathlib import Path
from typing import Any, TypedDict

from quantharm.common.chat import Asking
from quantharm.common.errors import UserError
from quantharm.common.overlap import shared_sequences
from quantharm.common.prompts import Prompt
from quantharm.common.records.checks import CalibrationEvidence
from quantharm.common.records.generation import GenerationRecord
from quantharm.common.records.perplexity import PerplexityRecord
from quantharm.common.records.quantization import QuantizationRecord
from quantharm.common.text import read_text, sha256_of_windows
from quantharm.quantizers import Calibrates, calibration, quantizer_named

OVERLAP_WORDS = 13


class TextAndPromptsRecords(TypedDict):
    """A cell's records, by stage, that say which text and prompts it was scored on."""

    perplexity: PerplexityRecord
    generation: GenerationRecord


def calibration_evidence(
    record: QuantizationRecord,
    model: Any,
    head: Any,
    tokenizer: Any,
    cell: TextAndPromptsRecords,
    evaluation: str,
    prompts: list[Prompt],
) -> CalibrationEvidence | None:
    """`calibration` of quantization.json with overlaps, losses and coverage; None for a method that does not calibrate.

    head: as scoring.output_head returns it. evaluation: the text that the cell was scored on. Raises UserError where
    the calibration file is no longer the one that the record describes.
    """
    reached = record.get("calibration")
    if reached is None:
        return None
    text = read_text(Path(reached["file"]))
    quantizer = quantizer_named(record["quantizer"])
    assert isinstance(quantizer, Calibrates)  # or its record would have no `calibration`
    samples = quantizer.calibration_samples(tokenizer, text, record["settings"], model.config.model_type)
    if sha256_of_windows(samples) != reached["tokens_sha256"]:
        raise UserError(f"{reached['file']} is not what {record['method']} was calibrated on; quantize it again")
    own_text = record["settings"].get("calibration_corruption") is None
    return {
        **reached,
        "overlaps": len(shared_sequences(text, [evaluation, *(p["prompt"] for p in prompts)], OVERLAP_WORDS))
        if own_text
        else 0,
        "nll_mean_nats": calibration.mean_loss(model, head, samples),
        "text_nll_mean_nats": cell["perplexity"]["nll_mean_nats"],
        **calibration.prompt_coverage(samples, tokenizer, prompts, Asking.of(cell["generation"])),
    }
