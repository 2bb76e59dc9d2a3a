"""compressed-tensors: integers, 8-bit and 4-bit floats in the layouts that vLLM reads; no calibration.

The schemes are the library's own, by their names in its list of presets:

    W3A16, W4A16, W8A16   integers in groups of input channels, one scale a group
    W8A8                  8-bit integers, one scale a row; a kernel rounds each token's activations to 8 bits too
    FP8_DYNAMIC           float8_e4m3, one scale a row; activations too, one scale a token
    FP8_BLOCK             float8_e4m3, one scale for 128 × 128 weights; activations too, one scale for 128 channels
    NVFP4A16              4-bit floats in groups of 16, a float8 scale a group and a float32 one a matrix
    MXFP4A16, MXFP4       4-bit floats in groups of 32, a power of two a group; the second rounds activations as well
    MXFP8                 float8_e4m3 in groups of 32, a power of two a group; activations too

Scales come from each group's largest weight: rounding to nearest. Experts are taken apart into linear layers first.
W4A16_ASYM is left out: transformers 5.23 cannot load its zero points as version 0.20 saves them.
"""

from pathlib import Path

from quantharm.common.records.quantization import QuantizerOutput, Settings
from quantharm.common.records.source import SourceRecord
from quantharm.quantizers import SettingsSchema, pretrained
from quantharm.quantizers.formats import families

load = pretrained.load_own
inspect = families.inspect
multiply_in_float32 = families.multiply_in_float32

INTEGER_GROUPS = ("W3A16", "W4A16", "W8A16")
DIVISORS = {"NVFP4A16": 16, "MXFP4A16": 32, "MXFP4": 32, "MXFP8": 32, "FP8_BLOCK": 128}  # of a layer's inputs
SCHEMES = (*INTEGER_GROUPS, "W8A8", "FP8_DYNAMIC", "FP8_BLOCK", "NVFP4A16", "MXFP4A16", "MXFP4", "MXFP8")

SETTINGS: SettingsSchema = {
    "scheme": {"enum": list(SCHEMES), "default": "W4A16", "description": "A preset of the library."},
    "group_size": {
        "enum": [32, 64, 128],
        "default": 128,
        "description": "Input channels that share a scale, in the schemes of integers with 16-bit activations.",
    },
}


def divisor(settings: Settings) -> int:
    """The number that must divide the inputs of every quantized layer."""
    scheme = settings["scheme"]
    return settings["group_size"] if scheme in INTEGER_GROUPS else DIVISORS.get(scheme, 1)


def without_effect(settings: Settings) -> set[str]:
    return set() if settings["scheme"] in INTEGER_GROUPS else {"group_size"}


def grid(settings: Settings) -> str | None:
    """The grid of a scheme that rounds to even steps; None for the schemes of floats."""
    if settings["scheme"] == "W4A16":
        return f"int4-{settings['group_size']}"
    return "int8" if settings["scheme"] == "W8A8" else None


def unsupported(model, settings: Settings) -> str | None:
    """Asked of a model on the meta device."""
    from quantharm.quantizers.experts import take_apart
    from quantharm.quantizers.quantizable import linears_to_quantize, too_few_linears

    take_apart(model)
    size = divisor(settings)
    for name, linear in linears_to_quantize(model).items():
        if linear.in_features % size:
            return f"scheme {settings['scheme']} takes {size} inputs at a time, and {name} has {linear.in_features}"
    return too_few_linears(model, "compressed-tensors")


def quantize(
    source: SourceRecord, settings: Settings, dtype: str, device: str, gpus: int, output: Path, calibration: Path | None
) -> QuantizerOutput:
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config, preset_name_to_scheme
    from huggingface_hub import save_torch_state_dict

    from quantharm.models.loading import LARGEST_FILE, load_checkpoint
    from quantharm.quantizers.experts import take_apart
    from quantharm.quantizers.quantizable import linears_to_quantize, plain_linears

    model = load_checkpoint(Path(source["path"]), source, dtype, device, gpus)
    take_apart(model)
    taken = linears_to_quantize(model)
    scheme = preset_name_to_scheme(settings["scheme"], ["Linear"])
    if settings["scheme"] in INTEGER_GROUPS:
        scheme.weights.group_size = settings["group_size"]
    left = [name for name in plain_linears(model) if name not in taken]
    config = QuantizationConfig(config_groups={"group_0": scheme}, ignore=left)
    apply_quantization_config(model, config, show_progress=False)
    for module in taken.values():
        set_scales(module)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.config.save_pretrained(output)  # model.save_pretrained would join the experts again
    tensors = {name: alone(tensor) for name, tensor in model.state_dict().items()}
    save_torch_state_dict(tensors, output, max_shard_size=LARGEST_FILE)
    compressor.update_config(str(output))
    return {}


def alone(tensor):
    """The tensor, copied where it is a view of a larger one (a padded block, cut), which safetensors refuses."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def set_scales(module) -> None:
    """Sets a layer's scales and zero points from the smallest and largest weight of each group or block."""
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    arguments = module.quantization_scheme.weights
    weight = module.weight.data.float()
    low, high = extremes(weight, arguments)
    whole = None
    if hasattr(module, "weight_global_scale"):
        whole = generate_gparam(weight.min(), weight.max())
        module.weight_global_scale.data.copy_(whole)
    scales, zeros = calculate_qparams(low, high, arguments, global_scale=whole)
    module.weight_scale.data.copy_(scales.reshape(module.weight_scale.shape))
    if hasattr(module, "weight_zero_point"):
        module.weight_zero_point.data.copy_(zeros.reshape(module.weight_zero_point.shape))


def extremes(weight, arguments):
    """(smallest, largest) of the weights that share a scale, in the scales' shape; weight: [rows, columns] float32."""
    import torch

    if arguments.strategy == "block":
        high, wide = arguments.block_structure
        rows, columns = weight.shape
        padded = torch.nn.functional.pad(weight, (0, -columns % wide, 0, -rows % high))
        shared = padded.unflatten(1, (-1, wide)).unflatten(0, (-1, high)).transpose(1, 2).flatten(2)
    elif arguments.group_size and arguments.group_size > 0:
        shared = weight.unflatten(1, (-1, arguments.group_size))
    else:
        shared = weight.unsqueeze(1)  # a row
    return shared.amin(-1), shared.amax(-1)
