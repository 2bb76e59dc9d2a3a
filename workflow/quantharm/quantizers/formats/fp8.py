"""Block-FP8, as DeepSeek and Qwen ship it (`quant_method: fp8`): float8_e4m3fn with a scale a block, or a matrix.

    weight            [rows, columns] float8_e4m3fn
    weight_scale_inv  [⌈rows / tall⌉, ⌈columns / wide⌉], 128 × 128 weights a block; the weight times it is the matrix

MXFP8 (`mxfp8`) is the same with blocks of 1 × 32 and powers of two for scales. transformers multiplies them packed, and
rounds the inputs as well, with kernels that it downloads from a hub. Here they are unpacked on loading, on a CPU and on
a GPU, and inputs are not rounded: the figures are the cost of rounding the weights.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from quantharm.common.checkpoint_files import weight_files
from quantharm.common.errors import UserError
from quantharm.quantizers.formats import LoadingArguments, StatedQuantization

if TYPE_CHECKING:
    from torch import Tensor

    from quantharm.quantizers.quantized_layers import QuantizedMatrix

METHODS = ("fp8", "mxfp8")


@contextlib.contextmanager
def loading(
    checkpoint: Path, stated: StatedQuantization, backend: str | None, dtype: str, device: str
) -> Iterator[LoadingArguments]:
    from transformers import FineGrainedFP8Config

    refuse_other_scales(checkpoint)
    yield {"quantization_config": FineGrainedFP8Config(dequantize=True)}


def refuse_other_scales(checkpoint: Path) -> None:
    """Raises UserError for 8-bit floats whose scales have another name: AutoFP8 calls its method `fp8`, too."""
    from quantharm.quantizers.formats.files import headers_of_files

    for name, headers in headers_of_files(weight_files(checkpoint)).items():
        if "weight_scale" in headers and "weight_scale_inv" not in headers:
            raise UserError(
                f"{checkpoint} keeps the scales of {name} and others as `weight_scale`, as AutoFP8 does, and "
                "transformers reads `weight_scale_inv`; name a checkpoint by llm-compressor (compressed-tensors)"
            )


def block_of(stated: StatedQuantization, rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns that share a scale; the whole matrix where the config states no block."""
    if stated.get("quant_method") == "mxfp8":
        return 1, 32
    tall, wide = stated.get("weight_block_size") or (rows, columns)
    return int(tall), int(wide)


def inspect(name: str, module, checkpoint: Path) -> "QuantizedMatrix | None":
    """A linear layer whose weight the file holds in 8-bit floats."""
    from quantharm.quantizers.formats.families import stated_quantization
    from quantharm.quantizers.formats.files import is_held_dequantized, module_headers, module_tensors, stored_bytes
    from quantharm.quantizers.quantized_layers import QuantizedMatrix

    if not is_held_dequantized(module):
        return None
    headers = module_headers(checkpoint, name)
    if "weight" not in headers or headers["weight"].dtype != "F8_E4M3" or "weight_scale_inv" not in headers:
        return None
    rows, columns = module.out_features, module.in_features
    tall, wide = block_of(stated_quantization(checkpoint), rows, columns)
    scale = headers["weight_scale_inv"]
    return QuantizedMatrix(
        name,
        rows,
        columns,
        stored_bytes=stored_bytes(headers, "activation_scale"),
        formula_bytes=rows * columns + -(-rows // tall) * -(-columns // wide) * scale.bytes / max(scale.elements, 1),
        dequantize=lambda: dequantize(module_tensors(checkpoint, name), tall, wide),
        held_dequantized=True,
    )


def dequantize(tensors: "Mapping[str, Tensor]", tall: int, wide: int) -> "Tensor":
    """The matrix in the file: number × scale of its block; [rows, columns] float32. The last blocks may be cut."""
    import torch

    from quantharm.quantizers.formats.packing import exponent_scale, to_float32

    weight, scales = to_float32(tensors["weight"]), tensors["weight_scale_inv"]
    powers = scales.dtype in (torch.uint8, torch.float8_e8m0fnu)
    scales = exponent_scale(scales) if powers else scales.float()
    scales = scales.reshape(-(-weight.shape[0] // tall), -(-weight.shape[1] // wide))
    return weight * scales.repeat_interleave(tall, 0)[: len(weight)].repeat_interleave(wide, 1)[:, : weight.shape[1]]
