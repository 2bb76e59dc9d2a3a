"""GGUF, the format of llama.cpp: one file with a model's shape, its tokenizer and its tensors in blocks (ggml.py).

A type that ends in _M mixes types: each matrix has its own. transformers unpacks all of them to 16 bits on loading (its
packed kernels are for GPUs and are downloaded from a hub). Names are llama.cpp's, and Llama's query and key rows lie in
another order. Embeddings and the output head may be quantized, too; the checks do not count that against a file.
"""

import contextlib
import functools
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantharm.common.checkpoint_files import gguf_file
from quantharm.common.errors import UserError, first_line
from quantharm.quantizers.formats import LoadingArguments, StatedQuantization

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor, TensorNameMap
    from torch import Tensor

    from quantharm.quantizers.quantized_layers import QuantizedMatrix

METHODS = ("gguf",)
FLOATS = ("F32", "F16", "BF16", "F64")
PERMUTED = {"llama": ("attn_q.", "attn_k.")}  # architecture: matrices whose rows lie in another order


@functools.lru_cache(maxsize=2)
def read_file(path: Path, modified_ns: int) -> "GGUFReader":
    """The package's reader: the file is mapped, no tensor is read. Raises UserError for a file that is not whole."""
    from gguf import GGUFReader

    try:
        return GGUFReader(path)
    except (ValueError, OSError, KeyError, IndexError) as error:
        raise UserError(f"{path} is not a whole GGUF file ({first_line(error)}); fetch it again") from None


def opened(checkpoint: Path) -> "GGUFReader":
    """The reader of the checkpoint's GGUF file."""
    path = gguf_file(checkpoint)
    assert path is not None, checkpoint
    return read_file(path, path.stat().st_mtime_ns)


def tensors_of(checkpoint: Path) -> "dict[str, ReaderTensor]":
    """{llama.cpp's name: the package's tensor}."""
    return {tensor.name: tensor for tensor in opened(checkpoint).tensors}


def tensor_bytes(checkpoint: Path) -> int:
    """Bytes of the tensors as the file packs them, which is what llama.cpp keeps in memory."""
    return sum(int(tensor.n_bytes) for tensor in opened(checkpoint).tensors)


def value(checkpoint: Path, key: str) -> Any:
    """A value of the file's metadata; None where it has no such key."""
    field = opened(checkpoint).get_field(key)
    return None if field is None else field.contents()


def unreadable(stated: StatedQuantization, device: str) -> str | None:
    """The file's architecture or types of tensors, where they are not read here; None where all are."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    from quantharm.quantizers.formats.ggml import TYPES

    checkpoint = Path(stated["file"])
    architecture = value(checkpoint, "general.architecture")
    if architecture not in GGUF_SUPPORTED_ARCHITECTURES:
        return f"transformers reads no GGUF files of the architecture {architecture!r}"
    types = {tensor.tensor_type.name for tensor in opened(checkpoint).tensors}
    unknown = sorted(types - set(TYPES) - set(FLOATS))
    return f"it has tensors of type {', '.join(unknown)}; {', '.join(TYPES)} are read here" if unknown else None


@contextlib.contextmanager
def loading(
    checkpoint: Path, stated: StatedQuantization, backend: str | None, dtype: str, device: str
) -> Iterator[LoadingArguments]:
    from transformers import GgufConfig

    yield {"quantization_config": GgufConfig(dequantize=True)}


@functools.lru_cache(maxsize=4)
def name_table(architecture: str, layers: int) -> "TensorNameMap":
    """The package's table of names; its get_name gives llama.cpp's name for transformers'."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    return get_tensor_name_map(next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture), layers)


def stored_tensor(checkpoint: Path, name: str) -> "ReaderTensor | None":
    """The tensor of the module `name`; None where the file holds none of that name."""
    architecture = value(checkpoint, "general.architecture")
    table = name_table(architecture, int(value(checkpoint, f"{architecture}.block_count")))
    own = table.get_name(name)
    return tensors_of(checkpoint).get(f"{own}.weight") if own else None


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
        stored_bytes=int(tensor.n_bytes),
        formula_bytes=rows * columns / kind.weights * kind.bytes,
        dequantize=lambda: dequantize(checkpoint, name),
        held_dequantized=True,
        stored_as=tensor.tensor_type.name,
    )


def dequantize(checkpoint: Path, name: str) -> "Tensor":
    """The matrix in the file, its rows in transformers' order; [rows, columns] float32."""
    import torch

    from quantharm.quantizers.formats.ggml import TYPES

    tensor = stored_tensor(checkpoint, name)
    assert tensor is not None, name  # `inspect` has seen it
    kind = TYPES[tensor.tensor_type.name]
    columns, rows = (int(length) for length in tensor.shape)
    blocks = torch.from_numpy(tensor.data.copy()).flatten().reshape(-1, kind.bytes)
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
