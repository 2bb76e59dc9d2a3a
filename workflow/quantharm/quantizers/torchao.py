"""torchao: integers and 8-bit floats as tensor subclasses, which torch's compiler supports.

    int4_weight_only      integers in groups of input channels, scale and zero point a group, in the tinygemm kernel's
                          layout, which only a GPU can write and read
    int8_weight_only      one scale a row
    int8_dynamic          one scale a row; activations are rounded to 8 bits as well, one scale a token
    float8_weight_only    float8_e4m3, one scale a row
    float8_dynamic        float8_e4m3, one scale a row; activations too, one scale a token

torchao has no 4-bit layout for CPUs that can be saved: its layout for CPUs keeps each 4-bit integer in a byte.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from quantharm.common.records.quantization import QuantizerOutput, Settings
from quantharm.common.records.source import SourceRecord
from quantharm.quantizers import SettingsSchema, pretrained
from quantharm.quantizers.experts import conflict_of_experts
from quantharm.quantizers.formats import families

if TYPE_CHECKING:
    from quantharm.common.checkpoint_files import CheckpointConfig

load = pretrained.load_own
inspect = families.inspect
multiply_in_float32 = families.multiply_in_float32

KINDS = ("int4_weight_only", "int8_weight_only", "int8_dynamic", "float8_weight_only", "float8_dynamic")

SETTINGS: SettingsSchema = {
    "kind": {
        "enum": list(KINDS),
        "default": "int8_weight_only",
        "description": "Rounded factors and their type.",
    },
    "group_size": {
        "enum": [32, 64, 128, 256],
        "default": 128,
        "description": "Input channels that share a scale, in int4_weight_only.",
    },
}


def grid(settings: Settings) -> str | None:
    if settings["kind"] == "int4_weight_only" and settings["group_size"] <= 128:
        return f"int4-{settings['group_size']}"
    return "int8" if settings["kind"].startswith("int8") else None


def without_effect(settings: Settings) -> set[str]:
    return set() if settings["kind"] == "int4_weight_only" else {"group_size"}


def conflict(settings: Settings, checkpoint_config: "CheckpointConfig") -> str | None:
    return conflict_of_experts(checkpoint_config, "torchao")


def unsupported(model, settings: Settings) -> str | None:
    """Asked of a model on the meta device."""
    import torch

    from quantharm.quantizers.quantizable import linears_to_quantize, too_few_linears

    if settings["kind"] == "int4_weight_only":
        if not torch.cuda.is_available():
            return "torchao packs integers of four bits on a GPU only, and none is here; choose another `kind`"
        for name, linear in linears_to_quantize(model).items():
            if linear.in_features % settings["group_size"]:
                return f"group_size {settings['group_size']} does not divide the {linear.in_features} inputs of {name}"
    return too_few_linears(model, "torchao")


def library_config(settings: Settings):
    """torchao's configuration object for a method's settings."""
    from torchao import quantization as ao

    if settings["kind"] == "int4_weight_only":
        return ao.Int4WeightOnlyConfig(group_size=settings["group_size"], int4_packing_format="tile_packed_to_4d")
    return {
        "int8_weight_only": lambda: ao.Int8WeightOnlyConfig(granularity=ao.PerRow()),
        "int8_dynamic": lambda: ao.Int8DynamicActivationInt8WeightConfig(granularity=ao.PerRow()),
        "float8_weight_only": lambda: ao.Float8WeightOnlyConfig(),
        "float8_dynamic": lambda: ao.Float8DynamicActivationFloat8WeightConfig(granularity=ao.PerRow()),
    }[settings["kind"]]()


def quantize(
    source: SourceRecord, settings: Settings, dtype: str, device: str, gpus: int, output: Path, calibration: Path | None
) -> QuantizerOutput:
    from transformers import TorchAoConfig

    from quantharm.models.loading import LARGEST_FILE, load_checkpoint

    config = TorchAoConfig(library_config(settings))
    model = load_checkpoint(Path(source["path"]), source, dtype, device, gpus, quantization_config=config)
    model.save_pretrained(output, max_shard_size=LARGEST_FILE)
    return {}
