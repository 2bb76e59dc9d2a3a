"""compressed-tensors, as llm-compressor and AutoRound write it: W4A16, W8A8, FP8, NVFP4, MXFP4 and mixtures of them.

    pack-quantized         weight_packed [rows, ⌈columns · bits / 32⌉] int32, codes plus 2^(bits-1), low bits first;
                           weight_scale [rows, groups]; weight_zero_point packed along the rows; weight_shape, 2 × int64
    int-quantized          weight [rows, columns] int8, weight_scale a row (or a matrix)
    float-quantized        weight float8_e4m3fn, weight_scale a row, a matrix, a group or a block
    nvfp4-pack-quantized   weight_packed [rows, columns / 2] uint8 (E2M1), weight_scale float8 a group of 16, divided by
                           weight_global_scale, a float32 a matrix
    mxfp4-, mxfp8-…        weight_scale uint8 a group of 32, a power of two (E8M0)

Inputs are rounded where the config says so (`input_activations`). transformers multiplies FP8 by row as it is, on a
GPU; it unpacks the others to 16 bits when they are loaded, and rounds the inputs of plain linear layers.
"""

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from quantharm.common.checkpoint_files import weight_files
from quantharm.common.errors import UserError
from quantharm.quantizers.formats import LoadingArguments, StatedQuantization
from quantharm.quantizers.formats.compressed_tensors_config import Scheme, fault_of, groups_of, scheme_of
from quantharm.quantizers.formats.compressed_tensors_matrices import dequantize, formula_bytes, rounding_of

if TYPE_CHECKING:
    from quantharm.quantizers.quantized_layers import QuantizedMatrix

METHODS = ("compressed-tensors", "compressed_tensors")
KERNEL = "CompressedTensorsFP8Linear"


def unreadable(stated: StatedQuantization, device: str) -> str | None:
    import importlib.util

    if importlib.util.find_spec("compressed_tensors") is None:
        return "the package compressed-tensors is missing; install what envs/evaluation.txt pins"
    return fault_of(stated)


@contextlib.contextmanager
def loading(
    checkpoint: Path, stated: StatedQuantization, backend: str | None, dtype: str, device: str
) -> Iterator[LoadingArguments]:
    """Has weight-only formats unpacked on reading, and FP8 by row keep its kernel on a GPU; `finish` unpacks the rest.

    transformers unpacks on reading by one scheme for all layers, and makes no place for a cache's scales then; so a
    mixture of schemes and a quantized cache are left to `finish`.
    """
    from transformers import AutoConfig, CompressedTensorsConfig

    refuse_uncompressed(checkpoint, stated)
    groups = groups_of(stated)
    inputs_or_cache = any(group.get("input_activations") for group in groups) or stated.get("kv_cache_scheme")
    weights_only = len(groups) == 1 and not inputs_or_cache
    by_row = all(is_fp8_by_row(group) for group in groups)
    arguments: LoadingArguments = {
        "quantization_config": CompressedTensorsConfig(
            dequantize=weights_only, use_optimized_inference=device == "cuda" and by_row
        )
    }
    # The file is compressed whatever its config says: old ones call it frozen, and codes would be taken for weights.
    corrected: StatedQuantization = {"quantization_status": "compressed"}
    if plain := plain_though_targeted(checkpoint, stated):
        corrected |= {"ignore": [*(stated.get("ignore") or []), *plain]}
    if any(stated.get(key) != value for key, value in corrected.items()):
        config = AutoConfig.from_pretrained(checkpoint, local_files_only=True)
        config.quantization_config = stated | corrected
        arguments["config"] = config
    yield arguments


def refuse_uncompressed(checkpoint: Path, stated: StatedQuantization) -> None:
    """Raises UserError where weights are still 16 bits, with their scales beside them."""
    from quantharm.quantizers.formats.files import FLOATS, headers_of_files

    for name, headers in headers_of_files(weight_files(checkpoint)).items():
        if "weight_scale" in headers and "weight" in headers and headers["weight"].dtype in FLOATS:
            raise UserError(
                f"{checkpoint} was not compressed (`quantization_status: {stated.get('quantization_status')}`): {name} "
                "has 16-bit weights with scales beside them; save it compressed, as llm-compressor does by default"
            )


def plain_though_targeted(checkpoint: Path, stated: StatedQuantization) -> list[str]:
    """Modules whose weight is plain floats in the file although the config does not exclude them.

    AutoRound does not exclude the head. transformers would give it scales from uninitialised memory: NaN.
    """
    from quantharm.quantizers.formats.files import plain_matrices

    return [name for name in plain_matrices(checkpoint) if scheme_of(stated, name)]


def is_fp8_by_row(scheme: Scheme) -> bool:
    """Whether weights are 8-bit floats with a scale a row (or matrix), and inputs with a scale a token."""
    weights, inputs = scheme.get("weights"), scheme.get("input_activations")
    if not weights or not inputs:
        return False
    fp8 = weights["type"] == inputs["type"] == "float" and weights["num_bits"] == 8
    return fp8 and weights["strategy"] in ("tensor", "channel") and inputs["strategy"] == "token"


def finish(model, dtype) -> None:
    """Unpacks what transformers would unpack at the first call of the whole model, which stages never make.

    To `dtype`: NVFP4 and MX are unpacked to bfloat16 in any model, and a float32 one cannot multiply that.
    """
    import torch

    if hasattr(model, "ct_decompress_hook"):
        model.hf_quantizer.compressor.decompress_model(model)
        for module in model.modules():
            if type(module) is torch.nn.Linear and module.weight.is_floating_point():
                module.weight.data = module.weight.data.to(dtype)


def excluded(stated: StatedQuantization, names: Collection[str]) -> set[str]:
    return {name for name in names if scheme_of(stated, name) is None}


def inspect(name: str, module, checkpoint: Path) -> "QuantizedMatrix | None":
    """A linear layer whose weight the file holds packed, or as integers or 8-bit floats."""
    from quantharm.quantizers.formats.families import stated_quantization
    from quantharm.quantizers.formats.files import is_held_dequantized, module_headers, module_tensors, stored_bytes
    from quantharm.quantizers.quantized_layers import QuantizedMatrix

    if type(module).__name__ != KERNEL and not is_held_dequantized(module):
        return None
    headers = module_headers(checkpoint, name)
    plain = headers.get("weight")
    scheme = scheme_of(stated_quantization(checkpoint), name)
    if scheme is None or ("weight_packed" not in headers and (plain is None or plain.dtype not in ("I8", "F8_E4M3"))):
        return None
    rows, columns = module.out_features, module.in_features
    return QuantizedMatrix(
        name,
        rows,
        columns,
        stored_bytes=stored_bytes(headers, "input_scale", "input_zero_point", "input_global_scale"),
        formula_bytes=formula_bytes(scheme["weights"], rows, columns, headers),
        dequantize=lambda: dequantize(module_tensors(checkpoint, name), scheme["weights"], rows, columns),
        round_inputs=rounding_of(scheme.get("input_activations"), checkpoint, name, type(module).__name__ == KERNEL),
        held_dequantized=type(module).__name__ != KERNEL,
    )
