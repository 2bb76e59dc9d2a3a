"""A GGUF file: its metadata, its tensors, and llama.cpp's names of a model's modules."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantharm.common.checkpoint_files import gguf_file
from quantharm.common.errors import UserError, first_line, refuse_unread
from quantharm.quantizers.experts import ONE_EXPERT

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor, TensorNameMap

UNKNOWN_TYPE = "GGMLQuantizationType"  # in the package's error for a type's number that it does not know


@functools.lru_cache(maxsize=2)
def read_file(path: Path, modified_ns: int) -> "GGUFReader":
    """The package's reader: the file is mapped, no tensor is read.

    Raises UserError for a file that is not whole, or has a type of tensor that the package does not know.
    """
    from gguf import GGUFReader

    try:
        return GGUFReader(path)
    except (ValueError, OSError, KeyError, IndexError) as error:
        if UNKNOWN_TYPE in str(error):
            raise UserError(
                f"{path} has a tensor of a type that the package gguf does not know ({first_line(error)}): a "
                "fork's of llama.cpp, or one newer than the package; name a file in another type"
            ) from None
        refuse_unread(path, error)
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


@functools.lru_cache(maxsize=4)
def name_table(architecture: str, layers: int) -> "TensorNameMap":
    """The package's table of names; its get_name gives llama.cpp's name for transformers'."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    return get_tensor_name_map(next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture), layers)


def stored_name(checkpoint: Path, name: str) -> str | None:
    """llama.cpp's name of the module `name`, without `.weight`; None where its architecture has no such module.

    The experts of a layer lie in one tensor a kind, so the matrix of one has the name of all.
    """
    architecture = value(checkpoint, "general.architecture")
    table = name_table(architecture, int(value(checkpoint, f"{architecture}.block_count")))
    expert = ONE_EXPERT.match(f"{name}.")
    return table.get_name(f"{expert[1]}.{name.rpartition('.')[2]}" if expert else name)


def stored_tensor(checkpoint: Path, name: str) -> "ReaderTensor | None":
    """The tensor of the module `name`; None where the file holds none of that name."""
    own = stored_name(checkpoint, name)
    return tensors_of(checkpoint).get(f"{own}.weight") if own else None
