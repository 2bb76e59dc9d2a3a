"""GGUF, the format of llama.cpp: one file with a model's shape, its tokenizer and its tensors in blocks (ggml.py).

A type that ends in _M mixes types: each matrix has its own. transformers unpacks all of them to 16 bits on loading (its
packed kernels are for GPUs and are downloaded from a hub). Names are llama.cpp's, and Llama's query and key rows lie in
another order. Embeddings and the output head may be quantized, too; the checks do not count that against a file.
"""

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from quantharm.quantizers.experts import ONE_EXPERT, take_apart
from quantharm.quantizers.formats import LoadingArguments, StatedQuantization
from quantharm.quantizers.formats.gguf_file import opened, stored_tensor, value
from quantharm.quantizers.formats.gguf_places import every_tensor_in_its_place

if TYPE_CHECKING:
    from gguf import ReaderTensor
    from torch import Tensor

    from quantharm.quantizers.quantized_layers import QuantizedMatrix

METHODS = ("gguf",)
FLOATS = ("F32", "F16", "BF16", "F64")
# {architecture in a file: transformers' name of it}, where they differ
RENAMED = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "gpt-oss": "gpt_oss", "minimax-m2": "minimax_m2"}
PERMUTED = {"llama": ("attn_q.", "attn_k.")}  # architecture: matrices whose rows lie in another order


def unreadable(stated: StatedQuantization, device: str) -> str | None:
    """The file's architecture or types of tensors, where they are not read here; None where all are."""
    from quantharm.quantizers.formats.ggml import TYPES

    checkpoint = Path(stated["file"])
    if (parts := value(checkpoint, "split.count") or 1) > 1:
        return f"it is one of {parts} parts of a model; join them (`llama-gguf-split --merge`)"
    architecture = value(checkpoint, "general.architecture")
    if architecture not in architectures():
        return f"transformers reads no GGUF files of the architecture {architecture!r}"
    types = {tensor.tensor_type.name for tensor in opened(checkpoint).tensors}
    unknown = sorted(types - set(TYPES) - set(FLOATS))
    return f"it has tensors of type {', '.join(unknown)}; {', '.join(TYPES)} are read here" if unknown else None


def architectures() -> set[str]:
    """The architectures that transformers reads, by the names that files give them."""
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    read = {*GGUF_SUPPORTED_ARCHITECTURES, *GGUF_CONFIG_ARCHS}
    return read | {own for own, name in RENAMED.items() if name in read}


@contextlib.contextmanager
def loading(
    checkpoint: Path, stated: StatedQuantization, backend: str | None, dtype: str, device: str
) -> Iterator[LoadingArguments]:
    from transformers import GgufConfig

    with every_tensor_in_its_place(checkpoint):
        yield {"quantization_config": GgufConfig(dequantize=True)}


def finish(model, dtype) -> None:
    """Takes experts apart, which transformers keeps in one tensor, so that the matrix of each is seen."""
    take_apart(model)


def inspect(name: str, module, checkpoint: Path) -> "QuantizedMatrix | None":
    """A linear layer whose weight the file stores in blocks."""
    from quantharm.quantizers.formats.files import is_held_dequantized
    from quantharm.quantizers.formats.ggml import TYPES
    from quantharm.quantizers.quantized_layers import QuantizedMatrix

    if not is_held_dequantized(module):
        return None
    tensor = stored_tensor(checkpoint, name)
    if tensor is None or tensor.tensor_type.name not in TYPES:
        return None
    kind, (rows, columns) = TYPES[tensor.tensor_type.name], (module.out_features, module.in_features)
    return QuantizedMatrix(
        name,
        rows,
        columns,
        stored_bytes=int(tensor.n_bytes) // matrices_in(tensor),
        formula_bytes=rows * columns / kind.weights * kind.bytes,
        dequantize=lambda: dequantize(checkpoint, name),
        held_dequantized=True,
        stored_as=tensor.tensor_type.name,
    )


def matrices_in(tensor: "ReaderTensor") -> int:
    """The number of experts whose matrices a tensor holds; 1 for a tensor of one matrix."""
    return int(tensor.shape[2]) if len(tensor.shape) == 3 else 1


def dequantize(checkpoint: Path, name: str) -> "Tensor":
    """The matrix in the file, its rows in transformers' order; [rows, columns] float32."""
    import torch

    from quantharm.quantizers.formats.ggml import TYPES

    tensor = stored_tensor(checkpoint, name)
    assert tensor is not None, name  # `inspect` has seen it
    kind = TYPES[tensor.tensor_type.name]
    columns, rows = (int(length) for length in tensor.shape[:2])
    expert = ONE_EXPERT.match(f"{name}.")
    data = tensor.data[int(expert[2])] if expert else tensor.data
    blocks = torch.from_numpy(data.copy()).flatten().reshape(-1, kind.bytes)
    matrix = kind.dequantize(blocks).reshape(rows, columns)
    architecture = value(checkpoint, "general.architecture")
    if any(part in tensor.name for part in PERMUTED.get(architecture, ())):
        heads = value(checkpoint, f"{architecture}.attention.head_count")
        if "attn_k." in tensor.name:
            heads = value(checkpoint, f"{architecture}.attention.head_count_kv") or heads
        # llama.cpp pairs neighbouring rows of a head for its rotation, transformers rows half a head apart
        matrix = matrix.unflatten(0, (int(heads), -1, 2)).transpose(1, 2).flatten(0, 2)
    return matrix


def excluded(stated: StatedQuantization, names: Collection[str]) -> set[str]:
    """Modules whose weight the file stores as plain floats."""
    checkpoint = Path(stated["file"])
    tensors = {name: stored_tensor(checkpoint, name) for name in names}
    return {name for name, tensor in tensors.items() if tensor is not None and tensor.tensor_type.name in FLOATS}
