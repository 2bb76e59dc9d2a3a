"""One matrix in GPTQ's format, by arithmetic of our own.

qweight  [inputs · bits / 32, outputs] int32, codes from the low bits up; of 3 bits, some straddle two words
qzeros   [groups, outputs · bits / 32] int32: zero points less 1 in the first version of the format (`gptq`), zero
         points in the second (`gptq_v2`, AutoRound's `auto_round`)
scales   [groups, outputs] float16
g_idx    [inputs] int32, the group of each input channel: neighbours, or in any order (`desc_act`); optional
"""

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from quantharm.common.errors import UserError
from quantharm.quantizers.formats import StatedQuantization

if TYPE_CHECKING:
    from torch import Tensor

    from quantharm.quantizers.formats.files import Headers

FIRST = "gptq"
SECOND = "gptq_v2"
PACKINGS = {"auto_round:auto_gptq": FIRST, "auto_round": SECOND, "auto_round:gptqmodel": SECOND}


def format_of(stated: StatedQuantization) -> str | None:
    """`gptq` or `gptq_v2`; None for another layout."""
    if "packing_format" in stated:
        return PACKINGS.get(stated["packing_format"])
    name = str(stated.get("checkpoint_format") or stated.get("format") or FIRST).lower()
    return name if name in (FIRST, SECOND) else None


def kept_by_autoround(stated: StatedQuantization, names: Collection[str]) -> set[str]:
    """Those that AutoRound's `extra_config` leaves in 16 bits, by names and patterns."""
    kept = [key for key, value in (stated.get("extra_config") or {}).items() if value.get("bits", 4) >= 16]
    return {name for name in names if any(re.fullmatch(key, name) for key in kept)}


def shape_of(headers: "Headers", columns: int) -> tuple[int, int]:
    """(bits, group size) of a matrix with `columns` inputs, from the shapes of its tensors.

    Raises UserError where it has no scales.
    """
    if "scales" not in headers:
        packed = headers["qweight"]
        raise UserError(
            f"{packed.file} is damaged: {packed.key.removesuffix('.qweight')} has no scales; fetch it again"
        )
    return 32 * headers["qweight"].shape[0] // columns, columns // headers["scales"].shape[0]


def inputs_and_outputs(module) -> tuple[int, int]:
    """Features of a linear layer, or of GPT-2's Conv1D, which is one with its matrix transposed."""
    if hasattr(module, "in_features"):
        return module.in_features, module.out_features
    return tuple(module.weight.shape)


def codes(tensors: "Mapping[str, Tensor]", bits: int, first: bool) -> "Tensor":
    """Code - zero of each weight, as stored; [rows, columns] int16. first: zero points are stored less 1."""
    from quantharm.quantizers.formats.packing import less, unpack_words

    columns, rows = tensors["qweight"].shape[0] * 32 // bits, tensors["scales"].shape[1]
    packed = unpack_words(tensors["qweight"].t(), bits, columns)
    words = tensors["qzeros"].long() & 0xFFFFFFFF
    if first and bits != 3:  # 1 was taken from each number of a word at once, with borrows
        words = (words + sum(1 << place for place in range(0, 32, bits))) & 0xFFFFFFFF
    zeros = unpack_words(words, bits, rows)
    if first and bits == 3:
        zeros = (zeros + 1) & 7
    if zeros.shape[1] != rows:
        raise ValueError(f"zero points of {zeros.shape[1]} outputs, not of {rows}")
    return less(packed.short(), by_column(zeros.t().short(), tensors, columns))


def dequantize(tensors: "Mapping[str, Tensor]", bits: int, first: bool) -> "Tensor":
    """The matrix in the file: (code - zero) × scale; [rows, columns] float32."""
    from quantharm.quantizers.formats.packing import times

    whole = codes(tensors, bits, first).float()
    return times(whole, by_column(tensors["scales"].float().t(), tensors, whole.shape[1]))


def by_column(parts: "Tensor", tensors: "Mapping[str, Tensor]", columns: int) -> "Tensor":
    """[rows, groups] as they are where groups are equally many neighbouring columns, else those of each column."""
    import torch

    groups = parts.shape[1]
    order = tensors["g_idx"].long() if "g_idx" in tensors else torch.arange(columns) // (columns // groups)
    if columns % groups == 0 and torch.equal(order, torch.arange(columns) // (columns // groups)):
        return parts
    return parts[:, order]
