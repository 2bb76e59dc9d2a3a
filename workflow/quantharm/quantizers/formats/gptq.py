"""GPTQ (Frantar et al. 2022), by gptqmodel, AutoGPTQ and AutoRound: integers in groups of input channels, in any order.

Formula: bits a weight, 16 + bits a group, 32 an input channel for g_idx. Bits and group size are read from the shapes
of each matrix, so mixtures load as well. transformers has the package optimum put gptqmodel's linear layers in place,
and optimum knows no mixtures; `reader` puts one wherever the file has a qweight. Layout: gptq_matrices.py.
"""

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from quantharm.quantizers.formats import LoadingArguments, StatedQuantization
from quantharm.quantizers.formats.gptq_matrices import (
    FIRST,
    PACKINGS,
    SECOND,
    codes,
    dequantize,
    format_of,
    inputs_and_outputs,
    kept_by_autoround,
    shape_of,
)

if TYPE_CHECKING:
    from quantharm.quantizers.quantized_layers import QuantizedMatrix

METHODS = ("gptq", "auto-round", "auto_round")
TAKES_BACKEND = True
DEFAULT_BACKEND = {"cuda": "gptq_triton", "cpu": "gptq_torch"}


def unreadable(stated: StatedQuantization, device: str) -> str | None:
    if format_of(stated) is None:
        layout = stated.get("packing_format") or stated.get("checkpoint_format") or stated.get("format")
        return f"its layout is {layout}; {FIRST}, {SECOND} and AutoRound's {', '.join(PACKINGS)} are read here"
    if rounded := stated.get("activation"):
        mode = rounded.get("mode") if isinstance(rounded, dict) else rounded
        return (
            f"its layers round what they are given (`activation: {mode}`), which is not read here; name a checkpoint "
            "whose weights alone are quantized"
        )
    return None


@contextlib.contextmanager
def loading(
    checkpoint: Path, stated: StatedQuantization, backend: str | None, dtype: str, device: str
) -> Iterator[LoadingArguments]:
    """While this lasts, transformers loads such a checkpoint by `reader`."""
    from transformers.quantizers import auto

    own = dict.fromkeys(METHODS, reader(stated, backend or DEFAULT_BACKEND[device]))
    before = {method: auto.AUTO_QUANTIZER_MAPPING.get(method) for method in METHODS}
    auto.AUTO_QUANTIZER_MAPPING.update(own)
    try:
        yield {}
    finally:
        auto.AUTO_QUANTIZER_MAPPING.update({method: known for method, known in before.items() if known})


def reader(stated: StatedQuantization, backend: str):
    """A quantizer class for transformers that puts gptqmodel's linear layers where the file has a qweight."""
    import torch
    from torch import nn
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import HfQuantizer

    from quantharm.quantizers.experts import published_name
    from quantharm.quantizers.formats.files import headers_of_files

    class StoredGptq(HfQuantizer):
        requires_calibration = True

        def _process_model_before_weight_loading(self, model, checkpoint_files=None, device_map=None, **settings):
            from gptqmodel.quantization import METHOD
            from gptqmodel.utils.importer import hf_select_quant_linear_v2

            by_module = headers_of_files([Path(path) for path in checkpoint_files])
            self.has_order = any("g_idx" in headers for headers in by_module.values())
            if not self.has_order:  # AutoRound writes none: groups are neighbours
                ignored = getattr(model, "_keys_to_ignore_on_load_missing", None) or set()
                model._keys_to_ignore_on_load_missing = {*ignored, r"\.g_idx$"}
            for name, module in list(model.named_modules()):
                headers = by_module.get(name) or by_module.get(published_name(name), {})
                if "qweight" not in headers or not isinstance(module, (nn.Linear, Conv1D)):
                    continue
                inputs, outputs = inputs_and_outputs(module)
                bits, group = shape_of(headers, inputs)
                settings = {
                    "bits": bits,
                    "group_size": -1 if group == inputs else group,
                    "desc_act": bool(stated.get("desc_act", False)),
                    "sym": bool(stated.get("sym", True)),
                    "format": format_of(stated),
                }
                layer = hf_select_quant_linear_v2(
                    **settings, quant_method=METHOD.GPTQ, device_map=device_map, backend=backend, pack=False
                )
                model.set_submodule(
                    name,
                    layer(
                        **settings,
                        in_features=inputs,
                        out_features=outputs,
                        bias="bias" in headers,  # AutoGPTQ stores a bias of zeros where the model has none
                        register_buffers=True,
                    ).requires_grad_(False),
                )
                # GPT-2's attention would set its layers' weights anew, which these have not
                model.get_submodule(name.rpartition(".")[0])._is_hf_initialized = True

        def _process_model_after_weight_loading(self, model, **settings):
            from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module, hf_gptqmodel_post_init

            layers = [module for module in model.modules() if is_gptq_linear(module)]
            for layer in layers:
                if not self.has_order:
                    columns = torch.arange(layer.in_features, dtype=torch.int32, device=layer.qweight.device)
                    layer.g_idx = columns // (layer.in_features // len(layer.scales))
                layer.optimized = True  # else it is compiled, for half a minute a shape
                if format_of(stated) == FIRST and getattr(layer, "REQUIRES_FORMAT_V2", False):
                    convert_gptq_v1_to_v2_format_module(layer, bits=layer.bits, pack_dtype=layer.pack_dtype)
            hf_gptqmodel_post_init(model, use_act_order=bool(stated.get("desc_act", False)))

        @property
        def is_trainable(self) -> bool:
            return False

        def is_serializable(self, *_) -> bool:
            return True

    return StoredGptq


def is_gptq_linear(module) -> bool:
    """Whether a module is a GPTQ linear layer of gptqmodel."""
    names = {base.__name__ for base in type(module).__mro__}
    return "BaseQuantLinear" in names and "AWQuantLinear" not in names


def inspect(name: str, module, checkpoint: Path) -> "QuantizedMatrix | None":
    """A GPTQ linear of gptqmodel: codes of 2, 3, 4 or 8 bits, a float16 scale and a zero point a group."""
    from quantharm.quantizers.formats.families import stated_quantization
    from quantharm.quantizers.formats.files import module_headers, stored_bytes
    from quantharm.quantizers.quantized_layers import QuantizedMatrix, stored_tensors

    if not is_gptq_linear(module):
        return None
    headers = module_headers(checkpoint, name)
    rows, columns = module.out_features, module.in_features
    bits, group = shape_of(headers, columns)
    first = format_of(stated_quantization(checkpoint)) == FIRST
    groups = rows * columns // group
    return QuantizedMatrix(
        name,
        rows,
        columns,
        stored_bytes=stored_bytes(headers),
        formula_bytes=rows * columns * bits / 8 + groups * (2 + bits / 8) + (4 * columns if "g_idx" in headers else 0),
        dequantize=lambda: dequantize(stored_tensors(checkpoint, name), bits, first),
        codes=lambda: codes(stored_tensors(checkpoint, name), bits, first),
        column_order=(lambda: stored_tensors(checkpoint, name)["g_idx"].argsort(stable=True))
        if "g_idx" in headers
        else None,
    )


def multiply_in_float32(module) -> None:
    """Gives a GPTQ linear a forward pass in float32, from the codes and scales that it holds.

    Some of gptqmodel's kernels multiply in 16 bits on a CPU (gptq_torch_fused, gptq_torch_aten). The one for 8-bit
    integers keeps no codes, and multiplies as it does.
    """
    if not is_gptq_linear(module) or not hasattr(module, "qweight"):
        return
    import torch

    held = {"qweight": module.qweight, "qzeros": module.qzeros, "scales": module.scales, "g_idx": module.g_idx}
    whole = codes(held, module.bits, first=False).to(torch.int16)  # [outputs, inputs]; zeros were converted on loading
    order = module.g_idx.long()
    bias = None if module.bias is None else module.bias.float()

    def forward(inputs: torch.Tensor) -> torch.Tensor:
        outputs = inputs.float() @ (whole * module.scales.float().t()[:, order]).t()
        return (outputs if bias is None else outputs + bias).to(inputs.dtype)

    module.forward = forward


def excluded(stated: StatedQuantization, names: Collection[str]) -> set[str]:
    """Modules excluded by a `dynamic` rule or AutoRound, or absent from `modules_in_block_to_quantize`."""
    import re

    left = [rule[2:] for rule in stated.get("dynamic") or {} if rule.startswith("-:")]
    kept = [part for parts in stated.get("modules_in_block_to_quantize") or [] for part in parts]
    return kept_by_autoround(stated, names) | {
        name
        for name in names
        if any(re.match(rule, name) for rule in left) or (kept and not name.endswith(tuple(kept)))
    }
