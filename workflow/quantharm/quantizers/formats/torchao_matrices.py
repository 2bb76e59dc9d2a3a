"""torchao's layouts of a matrix, and its rounding of inputs.

A file holds `_weight_qdata`, `_weight_scale` and, for integers, `_weight_zero_point` (8 bits) of each matrix; its
header names the class and the block that shares a scale. With `act_quant_kwargs`, Int8Tensor and Float8Tensor round
the inputs as well, by the largest number of a row or of all. IntxUnpackedToInt8Tensor keeps integers of fewer bits in a
byte each. Integers of four bits have a scale and a zero point in 16 bits a group, code · scale + zero, in two layouts:

    Int4Tensor                 qdata [rows, columns / 2], two signed codes a byte, the first in the low half
    Int4TilePackedTo4dTensor   qdata [rows / 8, columns / 128, 32, 4] int32: the registers of a warp's 32 threads for
                               8 × 16 tiles of the tensor cores' second factor, two tiles a word; codes less 8;
                               _weight_scale_and_zero [groups, rows, 2]; columns are filled up to a multiple of 1024
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from quantharm.quantizers.formats.files import Headers

BYTES = ("Int8Tensor", "Float8Tensor", "IntxUnpackedToInt8Tensor")
PLAIN_INT4, TILED_INT4 = "Int4Tensor", "Int4TilePackedTo4dTensor"
READ = (*BYTES, PLAIN_INT4, TILED_INT4)
SCALES = ("_weight_scale", "_weight_zero_point")
TILE_ROWS, TILE_COLUMNS = 8, 1024  # what Int4TilePackedTo4dTensor is filled up to


class InputRounding(TypedDict):
    """The rounding of a matrix's inputs, as torchao writes an object of its own to a file's header."""

    _type: str  # class
    _data: dict[str, Any]  # the fields of that class


class TensorSettings(TypedDict):
    """Fields of a torchao tensor that are read here."""

    block_size: NotRequired[list[int]]  # rows and columns that share a scale
    act_quant_kwargs: NotRequired[InputRounding | None]


def formula_bytes(kind: str, rows: int, columns: int, block: list[int], headers: "Headers") -> float:
    """Codes of one byte or half a byte; a scale, and a zero point where there is one, for each block."""
    if kind == TILED_INT4:
        rows, columns = -(-rows // TILE_ROWS) * TILE_ROWS, -(-columns // TILE_COLUMNS) * TILE_COLUMNS
        return rows * columns / 2 + rows * columns / block[1] * 4
    scales = -(-rows // block[0]) * -(-columns // block[1])
    wide = [headers[part].bytes / headers[part].elements for part in SCALES if part in headers]
    return rows * columns * (1 if kind in BYTES else 0.5) + scales * sum(wide)


def dequantize(tensors: "Mapping[str, Tensor]", rows: int, columns: int) -> "Tensor":
    """The matrix in the file; [rows, columns] float32."""
    import torch

    from quantharm.quantizers.formats.packing import less, times, to_float32

    codes, zeros = tensors["_weight_qdata"], tensors.get("_weight_zero_point")
    if "_weight_scale_and_zero" in tensors:
        scales, zeros = tensors["_weight_scale_and_zero"].float().unbind(-1)
        return in_groups(tiled_codes(codes) - 8, scales, zeros)[:rows, :columns]
    if zeros is not None and codes.shape[1] != columns:  # two codes a byte
        signed = torch.stack([codes << 4, codes], dim=-1).view(torch.int8).flatten(1) >> 4
        return in_groups(signed, tensors["_weight_scale"].float(), zeros.float())
    whole = to_float32(codes) if zeros is None else less(to_float32(codes), zeros.float())
    return times(whole, tensors["_weight_scale"].float())


def in_groups(codes: "Tensor", scales: "Tensor", zeros: "Tensor") -> "Tensor":
    """code · scale + zero; codes: [rows, columns], scales and zeros: [groups, rows] → [rows, columns] float32."""
    group = codes.shape[1] // len(scales)
    scales, zeros = (part.t().repeat_interleave(group, dim=1) for part in (scales, zeros))
    return codes.float() * scales + zeros


def tiled_codes(words: "Tensor") -> "Tensor":
    """[rows / 8, columns / (32 · pairs), 32, pairs] int32 → [rows, columns] codes of 0 to 15.

    Thread t holds row t / 4 and, of each tile of 16 columns, those of (t % 4) · 2 + {0, 1, 8, 9}; a word has the even
    columns of two tiles in its low half, then the odd ones. Source: matrix fragments of mma.m16n8k16 in NVIDIA's PTX
    ISA, and PyTorch's int4mm.cu.
    """
    import torch

    halves = (words.unsqueeze(-1) >> (4 * torch.arange(8))) & 15
    parts = halves.unflatten(2, (8, 4)).unflatten(-1, (2, 4))  # [row tile, …, row, pair of columns, word, odd, eighth]
    return parts.permute(0, 2, 1, 4, 6, 3, 5).flatten(2).flatten(0, 1)


def rounding_of(settings: TensorSettings, dtype: "torch.dtype") -> "Callable[[Tensor], Tensor] | None":
    """The rounding of the inputs, which the layer is given in `dtype`; None where they are left alone.

    The scale is computed in that dtype, as the library does: of bfloat16 it is up to 1 in 256 off what float32 gives,
    which moves every thirtieth float8 to its neighbour.
    """
    inputs = settings.get("act_quant_kwargs")
    if not inputs:
        return None
    of_all = inputs["_data"]["granularity"]["_type"] == "PerTensor"  # one scale for all rows
    if inputs["_type"] == "QuantizeTensorToFloat8Kwargs":
        return lambda values: rounded_to_float8(values.to(dtype), of_all)
    symmetric = (inputs["_data"].get("mapping_type") or {}).get("_data", "SYMMETRIC") == "SYMMETRIC"
    return lambda values: rounded_to_bytes(values.to(dtype), of_all, symmetric)


def rounded_to_float8(values: "Tensor", of_all: bool) -> "Tensor":
    """[n, columns] in any dtype → float32, the largest number of a row, or of all, at float8_e4m3fn's largest level."""
    from quantharm.quantizers.formats import activations

    largest = activations.largest(values.flatten() if of_all else values)
    return activations.fp8(values.float(), (largest / activations.FP8_LARGEST).float())


def rounded_to_bytes(values: "Tensor", of_all: bool, symmetric: bool) -> "Tensor":
    """[n, columns] in any dtype → float32: integers around 0, or from the smallest to the largest number."""
    import torch

    over = {} if of_all else {"dim": -1, "keepdim": True}
    low, high = values.amin(**over).clamp_max(0), values.amax(**over).clamp_min(0)
    width = 2 * torch.maximum(-low, high) if symmetric else high - low
    scale = (width / 255).float().clamp_min(torch.finfo(torch.float32).eps)
    zero = torch.zeros_like(scale) if symmetric else (-128 - (low / scale.to(values.dtype)).round()).float()
    return (((values.float() * (1 / scale)).round() + zero).clamp(-128, 127) - zero) * scale
