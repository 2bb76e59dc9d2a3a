"""The quantized matrices: their classes, their bits a weight, and whether they stand for the original's weights."""

from pathlib import Path
from typing import Any

from quantharm.common.records.checks import CheckRecord
from quantharm.common.records.quantization import QuantizationRecord
from quantharm.forensics.checks.outcome import outcome
from quantharm.quantizers import against_original, quantizable
from quantharm.quantizers.formats import families
from quantharm.quantizers.quantizable import QUANTIZED_SHARE_LIMIT
from quantharm.quantizers.quantized_layers import QuantizedMatrix

BITS_LIMIT = 0.03


def check_method_is_real(record: QuantizationRecord, matrices: list[QuantizedMatrix], model: Any) -> CheckRecord:
    """The loaded matrices are the quantizer's own classes and most of the weights, and the head is not among them.

    The share is of the weights that could have been quantized (quantizable.kept_weights). For a third party's
    checkpoint, matrices that its config excludes are left out, and a quantized head is no fault.
    """
    names = {matrix.name for matrix in matrices}
    quantized = sum(m.rows * m.columns for m in matrices)
    head_quantized = quantizable.head_name(model) in names
    third_party = record["quantizer"] == "pretrained"
    kept = quantizable.kept_weights(model, names)
    excluded = families.excluded_by_config(Path(record["checkpoint"]), kept) if third_party else set()
    left = sum(kept[name] for name in excluded)
    wanted_weights = quantized + sum(kept.values()) - left
    share = quantized / wanted_weights if wanted_weights else 0.0
    if record["quantizer"] == "unquantized":
        passed, limit, wanted = not matrices, 0.0, "of them quantized, as nothing should be in this cell"
    else:
        passed = share >= QUANTIZED_SHARE_LIMIT and (not head_quantized or third_party)
        limit = QUANTIZED_SHARE_LIMIT
        unpacked = "unpacked to 16 bits when loaded, " if any(m.held_dequantized for m in matrices) else ""
        classes = sorted({type(model.get_submodule(name)).__name__ for name in names})
        wanted = f"{unpacked}as {', '.join(classes) or 'nothing'}"
        wanted += f"; the output head is {'' if head_quantized else 'not '}quantized"
    if left:
        wanted += f"; its config excludes {len(excluded)} others, {left / (wanted_weights + left):.0%} of all weights"
    return outcome(
        "method_is_real",
        passed,
        share,
        limit,
        "share of the weights of two or more dimensions, but embeddings and head, that are quantized, "
        f"{len(matrices)} {wanted}",
    )


def check_bits_per_weight(record: QuantizationRecord) -> CheckRecord:
    """The loaded matrices, scales and tables included, take the bits a weight of the format's formula."""
    measured, formula = record["bits_per_weight"], record["bits_per_weight_formula"]
    if measured is None or formula is None:
        return outcome("bits_per_weight", None, None, BITS_LIMIT, "nothing is quantized in this cell")
    value = abs(measured / formula - 1)
    return outcome(
        "bits_per_weight",
        value <= BITS_LIMIT,
        value,
        BITS_LIMIT,
        f"relative difference of {measured:.4f} measured bits a weight from the format's {formula:.4f}",
    )


def check_stored_weights(
    model: Any, matrices: list[QuantizedMatrix], source: Path, record: QuantizationRecord
) -> CheckRecord:
    """Every part of every matrix in the file against the weights of the original in the folder `source`."""
    weighed = against_original.rounding_was_weighed(record)
    passed, value, explanation = against_original.judge(model, matrices, source, weighed)
    return outcome("stored_weights", passed, value, against_original.FACTOR_LIMIT, explanation)
