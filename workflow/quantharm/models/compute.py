"""The dtype of matrix products: that of the weights where the device multiplies it fast, else float32.

A processor without 16-bit instructions takes four to eight times as long for a bfloat16 product as for a float32 one
(AVX2, 512 × 256 by 256 × 512: 21 ms and 2.5). There a model is still loaded in the dtype that its cell states, so that
weights and sizes are those of 16 bits; then its layers are made to multiply in float32. All cells of a model compute in
one dtype, which provenance states.
"""

import functools

import torch

FLOATS_16 = (torch.bfloat16, torch.float16)


def compute_dtype(dtype: str, device: str) -> str:
    """The dtype in which matrices of `dtype` (bfloat16, float16 or float32) are multiplied on `cpu` or `cuda`.

    oneDNN, which multiplies them, is asked, so that a limit set for it (ONEDNN_MAX_CPU_ISA) counts.
    """
    if device != "cpu" or dtype == "float32":
        return dtype
    return dtype if multiplies_fast(dtype) else "float32"


def multiplies_fast(dtype: str) -> bool:
    """Whether this processor has instructions for products of `bfloat16` or `float16`."""
    if dtype == "bfloat16":
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.ops.mkldnn._is_mkldnn_fp16_supported()


@functools.cache
def multiplies_bytes_exactly() -> bool:
    """Whether products of 8-bit integers are exact on this processor.

    Without instructions for them (VNNI), oneDNN adds pairs of products in 16 bits, where large ones saturate: PyTorch
    2.13 is up to a quarter of the largest sum off with AVX2 alone.
    """
    rows, columns = torch.full((17, 64), 127, dtype=torch.int8), torch.full((64, 16), 127, dtype=torch.int8)
    return bool((torch._int_mm(rows, columns) == 127 * 127 * 64).all())


def to_float32(model) -> None:
    """Converts every 16-bit parameter and buffer to float32, in place; the layers then multiply in float32.

    Numbers stay the same, tied parameters stay tied, and a quantized layer's packed integers stay as they are, as does
    a tensor of a library's own class, whose dtype is that in which it multiplies.
    """
    for parameter in model.parameters():
        if parameter.dtype in FLOATS_16 and type(parameter.data) is torch.Tensor:
            parameter.data = parameter.data.float()
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.dtype in FLOATS_16:
                setattr(module, name, buffer.float())
