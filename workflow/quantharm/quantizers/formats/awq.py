"""AWQ (Lin et al. 2023), by autoawq and others: integers in groups of input channels, in the GEMM or GEMV layout.

    GEMM   qweight [inputs, outputs / 8] int32, qzeros [groups, outputs / 8] int32, scales [groups, outputs] float16;
           an int32 holds output channels 0, 2, 4, 6, 1, 3, 5, 7 from the low bits up
    GEMV   qweight [outputs, inputs / 8] int32 in order, qzeros [outputs, ⌈groups / 8⌉ or more], scales [outputs, …];
           columns of zeros and scales are padded, and the padding is never read

A group of -1 is a whole row. Formula: bits a weight, and 16 + bits a group.
"""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from quantharm.quantizers.formats import LoadingArguments, StatedQuantization
from quantharm.quantizers.formats.gptq_matrices import kept_by_autoround

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import AwqConfig

    from quantharm.quantizers.quantized_layers import QuantizedMatrix

METHODS = ("awq",)
PACKINGS = ("auto_round:auto_awq",)  # AutoRound's, where zero points are not in the middle
TAKES_BACKEND = True
GEMM_CHANNELS, IN_ORDER = (0, 2, 4, 6, 1, 3, 5, 7), tuple(range(8))
LAYOUTS = ("gemm", "gemv")
DEFAULT_BACKEND = {"cuda": "gemm_triton", "cpu": "torch_fused_awq"}


def layout_of(stated: StatedQuantization) -> str:
    """`gemm`, `gemv`, or the name of another layout."""
    return str(stated.get("version") or stated.get("format") or "gemm").lower()


def unreadable(stated: StatedQuantization, device: str) -> str | None:
    layout = layout_of(stated)
    if layout not in LAYOUTS:
        return f"its layout is {layout}; {' and '.join(LAYOUTS)} are read here"
    if stated.get("bits", 4) != 4:
        return f"it has {stated['bits']} bits a weight; kernels for AWQ exist for 4"
    if layout == "gemv" and device == "cpu":
        return "the GEMV layout has kernels for GPUs only; convert it to GEMM, or set `device: cuda`"
    return None


@contextlib.contextmanager
def loading(
    checkpoint: Path, stated: StatedQuantization, backend: str | None, dtype: str, device: str
) -> Iterator[LoadingArguments]:
    from transformers import AutoConfig

    from quantharm.quantizers.formats.files import plain_matrices

    arguments: LoadingArguments = {"quantization_config": backend_config(stated, backend, device)}
    if stated.get("modules_to_not_convert") or stated.get("packing_format") in PACKINGS:
        # autoawq looks for a key anywhere in a name, transformers at its beginning or end; the file knows.
        own = {"quant_method": METHODS[0], "modules_to_not_convert": plain_matrices(checkpoint)}
        config = AutoConfig.from_pretrained(checkpoint, local_files_only=True)
        config.quantization_config = stated | own
        arguments["config"] = config
    with computing_in(dtype):
        yield arguments


def excluded(stated: StatedQuantization, names: Collection[str]) -> set[str]:
    """Those in whose name a key of `modules_to_not_convert` stands, as autoawq reads it; those that AutoRound kept."""
    keys = stated.get("modules_to_not_convert") or []
    return kept_by_autoround(stated, names) | {name for name in names if any(key in name for key in keys)}


def backend_config(stated: StatedQuantization, backend: str | None, device: str) -> "AwqConfig":
    """transformers' AwqConfig for a checkpoint, with the kernel named: the automatic choice may compile one."""
    from transformers import AwqConfig

    return AwqConfig(
        bits=stated.get("bits", 4),
        group_size=stated.get("group_size", 128),
        zero_point=stated.get("zero_point", True),
        modules_to_not_convert=stated.get("modules_to_not_convert"),
        backend=backend or DEFAULT_BACKEND[device],
    )


@contextlib.contextmanager
def computing_in(dtype: str) -> Iterator[None]:
    """While this lasts, AWQ's linear layers are loaded to compute in `dtype`, that of all cells of a model.

    On a GPU transformers loads AWQ as float16 whatever is asked for. Nor does it tell the kernels the dtype: Marlin
    would be compiled twice, for minutes, first for float16 and then for the dtype of its first input.
    """
    from transformers.quantizers.quantizer_awq import AwqQuantizer

    from quantharm.models.devices import torch_dtype

    changing, finishing = AwqQuantizer.update_dtype, AwqQuantizer._process_model_after_weight_loading

    def finish(self, model, **settings) -> None:
        for module in model.modules():
            if hasattr(module, "compute_dtype"):
                module.compute_dtype = torch_dtype(dtype)
        finishing(self, model, **settings)

    AwqQuantizer.update_dtype = lambda self, asked: asked
    AwqQuantizer._process_model_after_weight_loading = finish
    try:
        yield
    finally:
        AwqQuantizer.update_dtype, AwqQuantizer._process_model_after_weight_loading = changing, finishing


def is_awq_linear(module) -> bool:
    """Whether a module is an AWQ linear layer of gptqmodel."""
    return any(base.__name__ == "AWQuantLinear" for base in type(module).__mro__)


def inspect(name: str, module, checkpoint: Path) -> "QuantizedMatrix | None":
    """An AWQ linear of gptqmodel: 4-bit codes, a float16 scale and a 4-bit zero point a group."""
    if not is_awq_linear(module):
        return None
    from quantharm.quantizers.quantized_layers import QuantizedMatrix, stored_tensors, tensor_bytes

    rows, columns = module.out_features, module.in_features
    group = module.group_size if module.group_size > 0 else columns
    tensors = [t for t in [*module.parameters(), *module.buffers()] if t is not module.bias]
    return QuantizedMatrix(
        name,
        rows,
        columns,
        stored_bytes=tensor_bytes(*tensors),
        formula_bytes=rows * columns / 2 + rows * columns // group * (2 + 0.5),
        dequantize=lambda: dequantize(checkpoint, name, group),
        codes=lambda: codes(stored_tensors(checkpoint, name), group),
    )


def is_gemv(tensors: "Mapping[str, Tensor]") -> bool:
    """Whether tensors lie in the GEMV layout, by their shapes.

    In GEMM a group has as many scales as there are output channels, of which an int32 of codes holds eight.
    """
    return tensors["scales"].shape[1] != 8 * tensors["qweight"].shape[1]


def unpack(packed: "Tensor", channels: tuple[int, ...]) -> "Tensor":
    """[words, n] int32 → [8 · words, n] 4-bit numbers, int8; the i-th from a word's low end is channel channels[i]."""
    import torch

    from quantharm.quantizers.formats.packing import unpack_words

    numbers = unpack_words(packed, 4, 8 * packed.shape[1]).view(torch.int8).unflatten(1, (-1, 8))
    return numbers.transpose(1, 2)[:, torch.tensor(channels).argsort()].flatten(0, 1)


def codes(tensors: "Mapping[str, Tensor]", group: int) -> "Tensor":
    """Code - zero of each weight, as stored; [rows, columns] int8."""
    packed, zeros = tensors["qweight"].t().contiguous(), tensors["qzeros"].t().contiguous()
    if is_gemv(tensors):
        levels = unpack(packed, IN_ORDER).t().contiguous()
        zeros = unpack(zeros, IN_ORDER).t()[:, : levels.shape[1] // group]
    else:  # [inputs, outputs / 8], [groups, outputs / 8]
        levels, zeros = unpack(packed, GEMM_CHANNELS), unpack(zeros, GEMM_CHANNELS)
    return (levels.unflatten(1, (-1, group)) - zeros.unsqueeze(-1)).flatten(1)


def dequantize(checkpoint: Path, name: str, group: int) -> "Tensor":
    """The matrix in the file: (code - zero) × scale; [rows, columns] float32."""
    from quantharm.quantizers.quantized_layers import stored_tensors

    tensors = stored_tensors(checkpoint, name)
    levels, scales = codes(tensors, group), tensors["scales"].float()
    scales = scales[:, : levels.shape[1] // group] if is_gemv(tensors) else scales.t()
    return levels.float().unflatten(1, (-1, group)).mul_(scales.unsqueeze(-1)).flatten(1)


def multiply_in_float32(module) -> None:
    """Gives an AWQ linear the forward pass y = x · ((codes - zeros) × scales) + bias in float32.

    gptqmodel's CPU kernels round float32 activations to 16 bits. Codes less zeros are unpacked once, to a byte each
    ([groups, group, outputs]), by its own function.
    """
    if not is_awq_linear(module):
        return
    import torch
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

    scales = module.scales.float()  # [groups, outputs]
    whole = dequantize_gemm(module.qweight, module.qzeros, torch.ones_like(scales), module.bits, module.group_size)
    levels = whole.to(torch.int8).unflatten(0, (len(scales), -1))
    bias = None if module.bias is None else module.bias.float()

    def forward(inputs: torch.Tensor) -> torch.Tensor:
        weight = (levels * scales.unsqueeze(1)).flatten(0, 1)  # [inputs, outputs]
        outputs = inputs.float() @ weight
        return (outputs if bias is None else outputs + bias).to(inputs.dtype)

    module.forward = forward
