"""NF4 and FP4 (QLoRA, Dettmers et al. 2023) by bitsandbytes: 4-bit codes in blocks of 64 weights, one scale a block.

Every field is set: the library's defaults are fp4, float32 computation and no double quantization.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantharm.common.records.quantization import QuantizerOutput, Settings
from quantharm.common.records.source import SourceRecord
from quantharm.quantizers import SettingsSchema
from quantharm.quantizers.experts import conflict_of_experts

if TYPE_CHECKING:
    from quantharm.common.checkpoint_files import CheckpointConfig
    from quantharm.quantizers.quantized_layers import QuantizedMatrix

CODE_BYTES = 64  # 16 float32 levels
NESTED_CODE_BYTES = 1024  # 256 float32 levels

SETTINGS: SettingsSchema = {
    "quant_type": {"enum": ["nf4", "fp4"], "default": "nf4", "description": "The 16 levels: normal-float or float."},
    "double_quantization": {
        "type": "boolean",
        "default": True,
        "description": "Whether the blocks' scales are themselves stored in 8 bits.",
    },
}


def grid(settings: Settings) -> str:
    return settings["quant_type"]


def conflict(settings: Settings, checkpoint_config: "CheckpointConfig") -> str | None:
    return conflict_of_experts(checkpoint_config, "bitsandbytes")


def unsupported(model, settings: Settings) -> str | None:
    from quantharm.quantizers.quantizable import too_little_for_bitsandbytes

    return too_little_for_bitsandbytes(model)


def quantize(
    source: SourceRecord, settings: Settings, dtype: str, device: str, gpus: int, output: Path, calibration: Path | None
) -> QuantizerOutput:
    from transformers import BitsAndBytesConfig

    from quantharm.models.devices import torch_dtype
    from quantharm.models.loading import LARGEST_FILE, load_checkpoint

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=settings["quant_type"],
        bnb_4bit_use_double_quant=settings["double_quantization"],
        bnb_4bit_compute_dtype=torch_dtype(dtype),
    )
    model = load_checkpoint(Path(source["path"]), source, dtype, device, gpus, quantization_config=config)
    model.save_pretrained(output, max_shard_size=LARGEST_FILE)
    return {}


def load(folder: Path, settings: Settings, source: SourceRecord, dtype: str, device: str, gpus: int) -> Any:
    from quantharm.models.loading import load_checkpoint
    from quantharm.quantizers.stored_states import refuse_damaged

    model = load_checkpoint(folder, source, dtype, device, gpus)
    refuse_damaged(model, folder)
    compute_4bit_in(model, dtype)
    return model


def compute_4bit_in(model, dtype: str) -> None:
    """Has the 4-bit layers multiply in `dtype`, from weights dequantized to it.

    On a processor with bfloat16 instructions bitsandbytes otherwise computes in bfloat16, 0.3 % off float32.
    """
    for module in model.modules():
        multiply_in(module, dtype)


def multiply_in(module, dtype: str) -> None:
    from quantharm.models.devices import torch_dtype

    if type(module).__name__ == "Linear4bit":
        module.compute_dtype = module.weight.quant_state.dtype = torch_dtype(dtype)
        module.support_avx512bf16_for_cpu = dtype == "bfloat16" and module.support_avx512bf16_for_cpu


def multiply_in_float32(module) -> None:
    multiply_in(module, "float32")


def inspect(name: str, module, checkpoint: Path) -> "QuantizedMatrix | None":
    """A Linear4bit: half a byte a weight, the blocks' scales and the fixed tables."""
    if type(module).__name__ != "Linear4bit":
        return None
    from quantharm.quantizers.quantized_layers import QuantizedMatrix, stored_tensors, tensor_bytes
    from quantharm.quantizers.stored_states import NESTED_BLOCK

    weight, state = module.weight, module.weight.quant_state
    rows, columns = module.out_features, module.in_features
    blocks = -(-rows * columns // state.blocksize)
    if state.nested:
        scale_bytes = blocks + 4 * -(-blocks // NESTED_BLOCK) + 4 + NESTED_CODE_BYTES
        stored = tensor_bytes(state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
    else:
        scale_bytes = 4 * blocks
        stored = tensor_bytes(state.absmax, state.code)

    return QuantizedMatrix(
        name,
        rows,
        columns,
        stored_bytes=tensor_bytes(weight.data) + stored,
        formula_bytes=rows * columns / 2 + scale_bytes + CODE_BYTES,
        dequantize=lambda: dequantize(checkpoint, name, rows, columns),
        codes=lambda: codes(stored_tensors(checkpoint, name)["weight"], rows, columns),
    )


def codes(weight, rows: int, columns: int):
    """The 4-bit codes of a packed matrix, two a byte, the first in the high half; [rows, columns] uint8."""
    import torch

    packed = weight.flatten().view(torch.uint8)
    return torch.stack([packed >> 4, packed & 15], dim=1).flatten()[: rows * columns].reshape(rows, columns)


def dequantize(checkpoint: Path, name: str, rows: int, columns: int):
    """The matrix in the file: level × scale of its block; [rows, columns] float32."""
    from quantharm.quantizers.formats.packing import looked_up, two_of_a_byte
    from quantharm.quantizers.quantized_layers import stored_tensors

    tensors = stored_tensors(checkpoint, name)
    state = next(json.loads(bytes(t.tolist())) for key, t in tensors.items() if ".quant_state.bitsandbytes__" in key)
    scales = tensors["weight.absmax"]
    if "weight.nested_absmax" in tensors:  # the scales are 8-bit codes around a common offset
        levels = tensors["weight.nested_quant_map"][scales.long()]
        second = tensors["weight.nested_absmax"].repeat_interleave(state["nested_blocksize"])[: len(levels)]
        scales = levels * second + state["nested_offset"]
    levels, scales, block = tensors["weight.quant_map"].float(), scales.float(), state["blocksize"]
    high_first = two_of_a_byte(levels).flip(1)
    values = looked_up(high_first, tensors["weight"].flatten())[: rows * columns]
    whole, rest = divmod(len(values), block)
    if len(scales) < whole + bool(rest):
        raise ValueError(f"{name} has {len(scales)} scales for {len(values)} weights in blocks of {block}")
    values[: whole * block].view(whole, block).mul_(scales[:whole, None])
    values[whole * block :].mul_(scales[whole : whole + bool(rest)])
    return values.view(rows, columns)
