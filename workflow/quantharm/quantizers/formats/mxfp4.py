"""gpt-oss' MXFP4: the experts of a layer in two tensors of E2M1 numbers, a power of two for each 32 of them.

    gate_up_proj_blocks  [experts, 2 · outputs, inputs / 32, 16] uint8, rows of gate and up by turns; two numbers
                         a byte, the low half first
    gate_up_proj_scales  [experts, 2 · outputs, inputs / 32] uint8 (E8M0); down_proj_… likewise

Formula: 4 bits a weight, 8 a block of 32. Its kernels are for GPUs and are downloaded from a hub, so transformers
unpacks the experts to 16 bits on loading; they are then taken apart into linear layers, so that each can be checked.
The package that does so calls the first half of the rows gate and the second half up; to compute, it interleaves them
again.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from quantharm.quantizers.experts import ONE_EXPERT, take_apart
from quantharm.quantizers.formats import LoadingArguments, StatedQuantization

if TYPE_CHECKING:
    from torch import Tensor

    from quantharm.quantizers.quantized_layers import QuantizedMatrix

METHODS = ("mxfp4",)
BLOCK = 32
JOINED = {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "down_proj": "down_proj"}


@contextlib.contextmanager
def loading(
    checkpoint: Path, stated: StatedQuantization, backend: str | None, dtype: str, device: str
) -> Iterator[LoadingArguments]:
    from transformers import Mxfp4Config

    yield {"quantization_config": Mxfp4Config(dequantize=True)}


def finish(model, dtype) -> None:
    take_apart(model)


def inspect(name: str, module, checkpoint: Path) -> "QuantizedMatrix | None":
    """A matrix of one expert."""
    from quantharm.quantizers.formats.files import is_held_dequantized, module_headers, read_part
    from quantharm.quantizers.quantized_layers import QuantizedMatrix

    expert, kind = ONE_EXPERT.match(f"{name}."), name.rpartition(".")[2]
    if expert is None or kind not in JOINED or not is_held_dequantized(module):
        return None
    headers = module_headers(checkpoint, expert[1])
    joined, first = JOINED[kind], module.out_features if kind == "up_proj" else 0
    if f"{joined}_blocks" not in headers:
        return None
    rows = slice(first, first + module.out_features)
    weights = module.out_features * module.in_features
    parts = [headers[f"{joined}_{part}"] for part in ("blocks", "scales")]
    of_expert = sum(header.bytes for header in parts) / parts[0].shape[0]
    return QuantizedMatrix(
        name,
        module.out_features,
        module.in_features,
        stored_bytes=int(of_expert if joined == "down_proj" else of_expert / 2),
        formula_bytes=weights / 2 + weights / BLOCK,
        dequantize=lambda: dequantize(*(read_part(header, int(expert[2])) for header in parts))[rows],
        held_dequantized=True,
    )


def dequantize(blocks: "Tensor", scales: "Tensor") -> "Tensor":
    """blocks: [rows, columns / 32, 16], scales: [rows, columns / 32], uint8 → [rows, columns] float32."""
    from quantharm.quantizers.formats.packing import exponent_scale, unpack_fp4

    return (unpack_fp4(blocks) * exponent_scale(scales).unsqueeze(-1)).flatten(1)
