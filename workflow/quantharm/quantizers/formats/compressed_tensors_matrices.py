"""One matrix in the compressed-tensors format: its bytes, its weights, and how its inputs are rounded.

The layouts are described in compressed_tensors.py, which reads the config that names them.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict

if TYPE_CHECKING:
    from torch import Tensor

    from quantharm.quantizers.formats.files import Headers

INT64_PAIR = 16  # bytes of weight_shape


class Rounding(TypedDict):
    """The library's QuantizationArgs, for weights or for inputs, as far as they are read here."""

    num_bits: int
    type: str  # int or float
    strategy: str  # one scale for each tensor, channel (a row), token, group, tensor_group or block
    group_size: NotRequired[int | None]  # columns
    block_structure: NotRequired[list[int]]  # rows and columns
    symmetric: NotRequired[bool]  # no zero points; true where it is missing
    dynamic: NotRequired[bool | str]  # scales of inputs are taken from them; else one from calibration
    scale_dtype: NotRequired[str | None]


def scale_count(weights: Rounding, rows: int, columns: int) -> int:
    """Number of scales of a matrix, by the strategy that the config states."""
    strategy, group = weights["strategy"], weights.get("group_size") or columns
    if strategy == "block":
        tall, wide = weights["block_structure"]
        return -(-rows // tall) * -(-columns // wide)
    return {"tensor": 1, "channel": rows}.get(strategy, rows * -(-columns // group))


def formula_bytes(weights: Rounding, rows: int, columns: int, headers: "Headers") -> float:
    """Bytes by the formula: codes, scales, zero points, the global scale and the shape.

    The file decides how wide a scale is, since that follows the dtype of the quantized model, and whether codes are
    packed: integers of fewer bits whose inputs are rounded too take a byte each (W4A8).
    """
    bits, scales = weights["num_bits"], scale_count(weights, rows, columns)
    if "weight_packed" in headers and headers["weight_packed"].dtype == "I32":
        total: float = rows * 4 * -(-columns * bits // 32) + INT64_PAIR
        zeros = 4 * -(-rows * bits // 32) * (scales // rows)
    else:
        total, zeros = rows * columns * (8 if "weight" in headers else bits) / 8, scales
    scale_bytes = headers["weight_scale"].bytes / headers["weight_scale"].elements
    total += scales * scale_bytes + (0 if weights.get("symmetric", True) else zeros)
    return total + (4 if "weight_global_scale" in headers else 0)


def dequantize(tensors: "Mapping[str, Tensor]", weights: Rounding, rows: int, columns: int) -> "Tensor":
    """The matrix in the file: (code - zero) × scale; [rows, columns] float32.

    Raises ValueError for another number of scales or zero points than the config states.
    """
    import torch

    from quantharm.quantizers.formats.packing import exponent_scale, less, times, to_float32, unpack_fp4, unpack_words

    bits, zeros = weights["num_bits"], tensors.get("weight_zero_point")
    if "weight_packed" not in tensors:
        codes = to_float32(tensors["weight"])
        zeros = None if zeros is None else zeros.float()
    elif tensors["weight_packed"].dtype == torch.uint8:
        codes, zeros = unpack_fp4(tensors["weight_packed"]), None
    else:
        codes = unpack_words(tensors["weight_packed"], bits, columns).float() - 2 ** (bits - 1)
        if zeros is not None:  # packed along the rows
            zeros = unpack_words(zeros.t(), bits, rows).t().float() - 2 ** (bits - 1)
    scales = tensors["weight_scale"]
    scales = exponent_scale(scales) if scales.dtype == torch.uint8 else scales.float()
    if "weight_global_scale" in tensors:
        scales = scales / tensors["weight_global_scale"].float()
    wanted = scale_count(weights, rows, columns)
    for kind, held in (("scales", scales), ("zero points", zeros)):
        if held is not None and held.numel() != wanted:
            raise ValueError(f"{held.numel()} {kind}, not {wanted}")
    order = tensors.get("weight_g_idx")
    if order is not None and int(order.min()) >= 0:  # groups of columns that are not neighbours
        scales, zeros = scales[:, order.long()], None if zeros is None else zeros[:, order.long()]
    elif weights["strategy"] == "block":
        tall, wide = weights["block_structure"]
        scales = scales.repeat_interleave(tall, 0)[:rows].repeat_interleave(wide, 1)[:, :columns]
    return times(codes if zeros is None else less(codes, zeros), scales)


def rounding_of(
    inputs: Rounding | None, checkpoint: Path, name: str, by_kernel: bool
) -> "Callable[[Tensor], Tensor] | None":
    """The rounding of the inputs before they are multiplied; None where the config leaves them alone.

    by_kernel: by the FP8 kernel for GPUs, which rounds each row by its own largest number whatever the config says.
    """
    import torch

    from quantharm.quantizers.formats import activations
    from quantharm.quantizers.formats.files import module_tensors

    if not inputs:
        return None
    bits, group = inputs["num_bits"], inputs.get("group_size")
    fp8 = inputs["type"] == "float" and bits == 8
    if by_kernel:
        return lambda values: activations.fp8_dynamic(values.float())

    def rounded(values: torch.Tensor) -> torch.Tensor:
        own = module_tensors(checkpoint, name)
        if not inputs.get("dynamic"):  # one scale, found in calibration
            scale, zero = (
                own["input_scale"].to(values.dtype),
                own.get("input_zero_point", torch.zeros(1)).to(values.dtype),
            )
            least = -(2 ** (bits - 1))
            whole = (values / scale + zero).clamp(least, least + 2**bits - 1).round()
            return activations.fp8(values, scale) if fp8 else (whole - zero) * scale
        groups = values.flatten()[None] if inputs["strategy"] == "tensor" else values
        groups = groups.unflatten(-1, (-1, group)) if inputs["strategy"] in ("group", "tensor_group") else groups
        if inputs["strategy"] == "tensor_group":
            done = activations.nvfp4(groups, float(own["input_global_scale"]))
        elif inputs["type"] == "float" and group == 32 and "uint8" in str(inputs.get("scale_dtype")):
            done = activations.mx(groups, bits)
        else:
            done = (
                activations.fp8_dynamic(groups)
                if fp8
                else activations.integers(groups, bits, inputs.get("symmetric", True))
            )
        return done.reshape(values.shape)

    return rounded
