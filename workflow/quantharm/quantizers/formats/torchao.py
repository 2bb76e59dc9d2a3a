"""torchao: integers and 8-bit floats in tensor subclasses, one scale a row or a group. Layouts: torchao_matrices.py."""

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantharm.quantizers.formats import StatedQuantization
from quantharm.quantizers.formats.torchao_matrices import (
    READ,
    TensorSettings,
    dequantize,
    formula_bytes,
    rounding_of,
)

if TYPE_CHECKING:
    from quantharm.quantizers.formats.files import Headers
    from quantharm.quantizers.quantized_layers import QuantizedMatrix

METHODS = ("torchao",)


def unreadable(stated: StatedQuantization, device: str) -> str | None:
    import importlib.util

    if importlib.util.find_spec("torchao") is None:
        return "the package torchao is missing; install what envs/evaluation.txt pins"
    kind = ((stated.get("quant_type") or {}).get("default") or {}).get("_type", "")
    if kind == "Int4WeightOnlyConfig" and device == "cpu":
        return "torchao's int4 layout is made for GPUs; set `device: cuda`"
    return None


def excluded(stated: StatedQuantization, names: Collection[str]) -> set[str]:
    """Those that `modules_to_not_convert` names, and those for which an FqnToConfig states none."""
    from quantharm.quantizers.formats.families import skipped_by_name

    left = skipped_by_name(stated, names)
    data = ((stated.get("quant_type") or {}).get("default") or {}).get("_data") or {}
    by_name = data.get("fqn_to_config")
    return left if by_name is None else left | {name for name in names if config_of(by_name, name) is None}


def config_of(by_name: dict[str, Any], name: str) -> Any:
    """The configuration of a module: by its name, its weight's name, the first pattern that fits, or the default."""
    patterns = (key for key in by_name if key.startswith("re:") and re.fullmatch(key.removeprefix("re:"), name))
    known = next((key for key in (name, f"{name}.weight", *patterns) if key in by_name), "_default")
    return by_name.get(known)


def stored_class(headers: "Headers", name: str) -> tuple[str, TensorSettings]:
    """(class of a matrix's tensor, its settings), from the header of the file that holds it."""
    from quantharm.quantizers.formats.files import file_metadata

    path = headers["_weight_qdata"].file
    stated = json.loads(file_metadata(path, path.stat().st_mtime_ns)[f"{name}.weight"])
    return stated["_type"], stated["_data"]


def inspect(name: str, module, checkpoint: Path) -> "QuantizedMatrix | None":
    """A linear layer whose weight is a tensor of one of torchao's classes."""
    from torch import nn

    from quantharm.quantizers.formats.files import module_headers, module_tensors, stored_bytes
    from quantharm.quantizers.quantized_layers import QuantizedMatrix

    headers = module_headers(checkpoint, name)
    if not isinstance(module, nn.Linear) or "_weight_qdata" not in headers:
        return None
    kind, settings = stored_class(headers, name)
    rows, columns = module.out_features, module.in_features
    block = settings.get("block_size") or [1, columns]
    return QuantizedMatrix(
        name,
        rows,
        columns,
        stored_bytes=stored_bytes(headers),
        formula_bytes=formula_bytes(kind, rows, columns, block, headers),
        dequantize=(lambda: dequantize(module_tensors(checkpoint, name), rows, columns)) if kind in READ else None,
        unread="" if kind in READ else f"torchao's {kind} has a layout that is not read here; {', '.join(READ)} are",
        round_inputs=rounding_of(settings, module.weight.dtype),
        stored_as=kind,
    )


def is_torchao_linear(module) -> bool:
    """Whether a module is a linear layer whose weight is a tensor of one of torchao's classes."""
    from torch import nn

    return isinstance(module, nn.Linear) and type(module.weight).__module__.startswith("torchao")


def finish(model, dtype) -> None:
    """Gives layers that keep another dtype than the model's a forward pass that converts."""
    for module in model.modules():
        if is_torchao_linear(module) and module.weight.dtype != dtype:
            multiply_through(module)


def multiply_in_float32(module) -> None:
    """Gives a layer of torchao float32 inputs and outputs; it multiplies in the dtype that its weight was made for."""
    if is_torchao_linear(module):
        multiply_through(module)


def multiply_through(layer) -> None:
    """Gives a layer a forward pass that casts its inputs to the weight's dtype and its outputs back."""
    own, dtype = layer.forward, layer.weight.dtype
    layer.forward = lambda inputs: own(inputs.to(dtype)).to(inputs.dtype)
