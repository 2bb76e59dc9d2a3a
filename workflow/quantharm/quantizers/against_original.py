"""Does each part of a quantized matrix still stand for the original's weights?

A kernel computes faithfully with a scale that is wrong in the file, so the check `kernel` cannot see it. Here the
dequantized matrix is compared with the weights of the model that was quantized, 32 columns of a row at a time. The
rounding error is alike in all of these parts; a wrong scale, zero point or run of codes makes it many times larger.
Its mean over a matrix is next to nothing, unless all zero points are read as other ones than they are.

The error is divided by the part's own norm, by the row's largest weight and by the matrix's largest weight, since
formats share a scale over a group, a row or a matrix; the smallest of the three ratios counts. Methods that rescale
channels before they round (AWQ, SmoothQuant) change the norms as well: then the factor of each row and column is
divided out first. Methods that weigh the rounding by what a calibration text shows of the inputs (importance matrices,
GPTQ) may let weights go whose inputs it never showed: there a part is no fault that shrank otherwise than by a factor.
Matrices that are nothing like the original's (rotated ones, or another model's) are not compared.
"""

import math
from pathlib import Path
from typing import NamedTuple

import torch

from quantharm.common.checkpoint_files import weight_files
from quantharm.common.records.quantization import QuantizationRecord
from quantharm.quantizers.formats import families
from quantharm.quantizers.formats.files import Headers, headers_of_files, read_tensor
from quantharm.quantizers.multiplied_parts import Multiplied, in_parts, multiplied_part, were_let_go
from quantharm.quantizers.original_weights import pairs_of
from quantharm.quantizers.plain_tensors import faults_of_plain
from quantharm.quantizers.quantized_layers import QuantizedMatrix

PART = 32  # columns
FACTOR_LIMIT = 16.0  # times the matrix's median error; sound parts reach 6.4 (tests/benchmark/wrong_scales.csv)
LEAST_ERROR = 0.3  # of the norm of a part's weights; a part below it is not called wrong
GAIN_LIMIT = 1.5  # norm of a matrix over the original's, at most; at least 1 over this
SHIFT_LIMIT = 0.5  # mean error over its root mean square; a zero point off by one makes it 0.96; sound: up to 0.07
LEAST_SHIFTED = 1e-3  # error over the weights, root mean squares; below, nothing was shifted
LEAST_COSINE = 0.5  # between a matrix and the original's
SHOWN_FAULTS = 3
WEIGHED = ("gptq", "gguf")  # may round with a calibration text's weights; AWQ rescales, and then rounds all alike
WEIGHED_IN_FEW_BITS = ("compressed-tensors", "compressed_tensors", "auto-round", "auto_round")
FEW_BITS = 7.0  # a weight
FACTOR_WEIGHTS = 256  # of a column or row, from which its factor is estimated
RESCALED = 0.01  # relative change of a norm's weight


class Worst(NamedTuple):
    """The part of a matrix whose error exceeds the matrix's usual rounding error by the largest factor."""

    factor: float  # its error over the matrix's median error, by the mildest measure
    gain: float  # norm of the part over the original's
    row: int
    column: int  # the first of the part, in the order of the groups
    matrix_gain: float  # norm of the matrix over the original's
    cosine: float
    shift: float  # mean error of the matrix over its root mean square; 0 where that is next to nothing
    multiplied: Multiplied | None = None  # a part of which all weights moved alike


def is_rescaled(model, headers: dict[str, Headers]) -> bool:
    """Whether a norm's weights differ from the original's, as they do where channels were rescaled before rounding."""
    for name, parameter in model.named_parameters():
        stored = headers.get(name.rpartition(".")[0], {}).get("weight")
        if not name.endswith("norm.weight") or parameter.dim() != 1 or stored is None:
            continue
        original, held = read_tensor(stored).float(), parameter.detach().float().cpu()
        if original.shape == held.shape and (held - original).norm() > RESCALED * original.norm():
            return True
    return False


def without_factors(dequantized: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """The original with each column, then each row, multiplied by its factor in the dequantized matrix.

    The factor is the median ratio over the stronger weights, so a few wrong weights do not move it.
    """
    for dimension in (0, 1):
        length = original.shape[dimension]
        chosen = torch.linspace(0, length - 1, min(length, FACTOR_WEIGHTS)).long().to(original.device)
        some, held = (m.index_select(dimension, chosen) for m in (original, dequantized))
        strong = some.abs() >= some.abs().median(dimension, keepdim=True).values.clamp_min(1e-30)
        ratios = torch.where(strong, held / some, torch.nan)
        original = original * ratios.nanmedian(dimension, keepdim=True).values.nan_to_num(1.0)
    return original


def norms_of_parts(matrix: torch.Tensor) -> torch.Tensor:
    """Norm of each run of PART columns of a row: [rows, columns] → [rows, ⌈columns / PART⌉]."""
    return in_parts(matrix, PART).norm(dim=1).unflatten(0, (len(matrix), -1))


def worst_part(dequantized: torch.Tensor, original: torch.Tensor, weighed: bool = False) -> Worst:
    """The worst part of a matrix; dequantized, original: [rows, columns] float32, a group's columns side by side.

    weighed: whether the rounding was, by a calibration text.
    """
    error, held, own = (norms_of_parts(m) for m in (dequantized - original, dequantized, original))
    error = error.nan_to_num(math.inf)
    peaks = original.abs()
    measures = [own, peaks.amax(1, keepdim=True).expand_as(own), peaks.max().expand_as(own)]
    factor = torch.full_like(own, math.inf)
    for measure in measures:
        share = error / measure.clamp_min(1e-30)
        usual = share[own > 0].median() if bool((own > 0).any()) else share.median()
        factor = torch.minimum(factor, share / usual.clamp_min(1e-6))
    wrong = (error > LEAST_ERROR * own) & (own > 0)
    if weighed:
        product = in_parts(dequantized * original, PART).sum(1).view_as(own)
        wrong &= ~were_let_go(error, held, own, product)
    factor = factor.masked_fill(~wrong, 0.0)
    place = int(factor.argmax())
    row, part = divmod(place, factor.shape[1])
    product, norms = float((dequantized * original).sum()), [float(m.norm()) for m in (dequantized, original)]
    return Worst(
        float(factor[row, part]),
        float(held[row, part] / own[row, part].clamp_min(1e-30)),
        row,
        part * PART,
        norms[0] / max(norms[1], 1e-30),
        product / max(norms[0] * norms[1], 1e-30),
        shift_of(dequantized - original, original),
    )


def shift_of(error: torch.Tensor, original: torch.Tensor) -> float:
    """Mean of the errors over their root mean square; 0 where they are next to nothing beside the original."""
    size = float(error.square().mean().sqrt())
    return float(error.mean()) / size if size > LEAST_SHIFTED * float(original.square().mean().sqrt()) else 0.0


def compare(model, matrices: list[QuantizedMatrix], source: Path, weighed: bool) -> dict[str, Worst]:
    """{matrix: its worst part}, for the matrices whose original lies in the folder `source`."""
    rescaled, worst_parts = is_rescaled(model, headers_of_files(weight_files(source))), {}
    device = next((parameter.device for _, parameter in model.named_parameters()), torch.device("cpu"))
    for matrix, pair in zip(matrices, pairs_of(model, matrices, source, device), strict=True):
        if pair is None:
            continue
        try:
            worst = worst_of(pair.dequantized.to(device), pair.original.to(device).float(), rescaled, weighed)
        except torch.OutOfMemoryError:  # beside a model that fills its GPU
            worst = worst_of(pair.dequantized, pair.original.float(), rescaled, weighed)
        worst_parts[matrix.name] = worst
    return worst_parts


def worst_of(dequantized: torch.Tensor, original: torch.Tensor, rescaled: bool, weighed: bool) -> Worst:
    """The worst part of a matrix, and a part of which all weights moved alike; about 30 passes over both."""
    original = without_factors(dequantized, original) if rescaled else original
    multiplied = multiplied_part(dequantized, original, rescaled, weighed)
    return worst_part(dequantized, original, weighed)._replace(multiplied=multiplied)


def place_of(name: str, row: int, column: int, size: int) -> str:
    return f"row {row} of {name}, {size} columns from {column} on in the order of its groups"


def faults_of(name: str, part: Worst) -> list[str]:
    """How a matrix differs from the original's by more than rounding explains, in words."""
    place = place_of(name, part.row, part.column, PART)
    if math.isnan(part.cosine):
        return [f"{place}, has weights that are infinite or no number"]
    if part.cosine < LEAST_COSINE:
        return [f"{name} is nothing like the original's"]
    faults = []
    if not 1 / GAIN_LIMIT < part.matrix_gain < GAIN_LIMIT:
        faults.append(f"{name} is {part.matrix_gain:.3g} times the original's")
    if abs(part.shift) > SHIFT_LIMIT:
        faults.append(f"all of {name} is shifted {'up' if part.shift > 0 else 'down'}, as by other zero points")
    if part.factor > FACTOR_LIMIT:
        faults.append(f"{place}, is {part.gain:.3g} times the original's")
    elif part.multiplied is not None:
        faults.append(f"{place_of(name, *part.multiplied[1:])}, is {part.multiplied.gain:.3g} times the original's")
    return faults


def rounding_was_weighed(record: QuantizationRecord) -> bool:
    """Whether a calibration text may have weighed the rounding; of a third party's GPTQ or GGUF nobody knows.

    Nor of compressed-tensors, in which llm-compressor writes GPTQ, or of AutoRound; with 8 bits there it moved little.
    """
    if record["quantizer"] == "pretrained":
        method = families.method_of(families.stated_quantization(Path(record["checkpoint"])))
        return method in WEIGHED or (method in WEIGHED_IN_FEW_BITS and (record["bits_per_weight"] or 0) < FEW_BITS)
    return record["quantizer"] in WEIGHED and record.get("calibration") is not None


def judge(model, matrices: list[QuantizedMatrix], source: Path, weighed: bool) -> tuple[bool | None, float | None, str]:
    """(whether every part stands for the original's weights, the worst factor, the explanation).

    weighed: rounding_was_weighed. The first two are None where nothing can be compared.
    """
    if not matrices:
        return None, None, "nothing is quantized in this cell"
    worst_parts = compare(model, matrices, source, weighed)
    if not worst_parts:
        if unread := next((matrix.unread for matrix in matrices if matrix.dequantize is None), ""):
            return None, None, unread
        return None, None, "none of its matrices is found in the original's files"
    unlike = [name for name, part in worst_parts.items() if part.cosine < LEAST_COSINE]
    if len(unlike) > len(worst_parts) / 2:
        few = f"{len(unlike)} of {len(worst_parts)} matrices are nothing like the original's"
        return None, None, f"{few}: rotated, or another model's"
    faults = [fault for name, part in worst_parts.items() for fault in faults_of(name, part)]
    faults += faults_of_plain(model, headers_of_files(weight_files(source)), {matrix.name for matrix in matrices})
    worst = max(part.factor for part in worst_parts.values())
    of = f"{len(worst_parts)} of {len(matrices)}" if len(worst_parts) < len(matrices) else f"{len(worst_parts)}"
    measured = f"largest error of {PART} weights of a row over their matrix's median, in {of} matrices"
    return not faults, worst, "; ".join([*faults[:SHOWN_FAULTS], measured])
