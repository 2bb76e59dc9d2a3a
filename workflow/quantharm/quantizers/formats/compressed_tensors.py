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
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict

from quantharm.common.checkpoint_files import weight_files
from quantharm.quantizers.formats import LoadingArguments, StatedQuantization
from quantharm.quantizers.formats.compressed_tensors_matrices import Rounding, dequantize, formula_bytes, rounding_of

if TYPE_CHECKING:
    from quantharm.quantizers.quantized_layers import QuantizedMatrix

METHODS = ("compressed-tensors", "compressed_tensors")
KERNEL = "CompressedTensorsFP8Linear"
KNOWN_FORMATS = (
    "dense", "pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "nvfp4-pack-quantized",
    "mxfp4-pack-quantized", "mxfp8-quantized", "mixed-precision",
)  # fmt: skip


class Scheme(TypedDict):
    """A group of modules that are quantized in one way."""

    targets: list[str]  # names, patterns or classes
    weights: Rounding
    input_activations: NotRequired[Rounding | None]
    format: NotRequired[str | None]  # of a mixture: the group's own


def unreadable(stated: StatedQuantization, device: str) -> str | None:
    import importlib.util

    if importlib.util.find_spec("compressed_tensors") is None:
        return "the package compressed-tensors is missing; install what envs/evaluation.txt pins"
    if stated.get("sparsity_config") and stated["sparsity_config"].get("format", "dense") != "dense":
        return f"its weights are sparse ({stated['sparsity_config']['format']}), which is not read here"
    formats = [stated.get("format"), *(group.get("format") for group in groups_of(stated))]
    unknown = sorted({str(name) for name in formats if name is not None and name not in KNOWN_FORMATS})
    return f"its format {unknown[0]} is not read here; {', '.join(KNOWN_FORMATS)} are" if unknown else None


def groups_of(stated: StatedQuantization) -> list[Scheme]:
    """The schemes that a config states."""
    return list((stated.get("config_groups") or {}).values())


@contextlib.contextmanager
def loading(
    checkpoint: Path, stated: StatedQuantization, backend: str | None, dtype: str, device: str
) -> Iterator[LoadingArguments]:
    """Has weight-only formats unpacked on reading, and FP8 by row keep its kernel on a GPU; `finish` unpacks the rest.

    transformers unpacks on reading by one scheme for all layers, so a mixture of schemes is left to `finish`.
    """
    from transformers import AutoConfig, CompressedTensorsConfig

    groups = groups_of(stated)
    weights_only = len(groups) == 1 and not groups[0].get("input_activations")
    by_row = all(is_fp8_by_row(group) for group in groups)
    arguments: LoadingArguments = {
        "quantization_config": CompressedTensorsConfig(
            dequantize=weights_only, use_optimized_inference=device == "cuda" and by_row
        )
    }
    plain = plain_though_targeted(checkpoint, stated)
    if plain:
        config = AutoConfig.from_pretrained(checkpoint, local_files_only=True)
        config.quantization_config = stated | {"ignore": [*(stated.get("ignore") or []), *plain]}
        arguments["config"] = config
    yield arguments


def plain_though_targeted(checkpoint: Path, stated: StatedQuantization) -> list[str]:
    """Modules whose weight is plain floats in the file although the config does not exclude them.

    AutoRound does not exclude the head. transformers would give it scales from uninitialised memory: NaN.
    """
    from quantharm.quantizers.formats.files import FLOATS, headers_of_files

    return sorted(
        name
        for name, headers in headers_of_files(weight_files(checkpoint)).items()
        if "weight" in headers
        and headers["weight"].dtype in FLOATS
        and len(headers["weight"].shape) == 2
        and not any(rest.startswith("weight_") for rest in headers)
        and scheme_of(stated, name)
    )


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


def matches(pattern: str, name: str, kind: str) -> bool:
    """Whether a pattern names a module: by its name, by `re:` matched from its beginning, or by its class."""
    if pattern.startswith("re:"):
        return re.match(pattern.removeprefix("re:"), name) is not None
    return pattern in (name, kind)


def scheme_of(stated: StatedQuantization, name: str, kind: str = "Linear") -> Scheme | None:
    """The scheme by which a module is quantized; None where it is left in 16 bits."""
    if any(matches(pattern, name, kind) for pattern in stated.get("ignore") or []):
        return None
    named = [g for g in groups_of(stated) if any(matches(t, name, "") for t in g.get("targets") or [])]
    by_class = [g for g in groups_of(stated) if any(matches(t, "", kind) for t in g.get("targets") or [])]
    return next(iter(named + by_class), None)


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
