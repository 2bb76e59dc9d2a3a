"""Tensors of one module in the files of a checkpoint: their headers, and their data."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import torch

from quantharm.common.checkpoint_files import weight_files

DTYPE_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
}  # fmt: skip


FLOATS = ("F64", "F32", "F16", "BF16")


class Header(NamedTuple):
    """A tensor as its file's header describes it."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str  # of safetensors: BF16, U8, …

    @property
    def elements(self) -> int:
        product = 1
        for length in self.shape:
            product *= length
        return product

    @property
    def bytes(self) -> int:
        return self.elements * DTYPE_BITS[self.dtype] // 8


Headers = dict[str, Header]  # {rest of the tensor's name after the module's: header}


def headers_of_file(path: Path) -> list[Header]:
    """Every tensor of a safetensors file; raises UserError for a file that is not whole."""
    from quantharm.models.completeness import open_weights

    with open_weights(path) as file:
        parts = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        return [Header(path, key, tuple(part.get_shape()), part.get_dtype()) for key, part in parts.items()]


def module_headers(checkpoint: Path, module: str) -> Headers:
    """Headers of the tensors of one module and of those below it; empty where the files do not know it."""
    return headers_of_files(weight_files(checkpoint)).get(module, {})


def headers_of_files(files: list[Path]) -> dict[str, Headers]:
    """{module: its headers} of safetensors files; read again only when a file changes."""
    return headers_by_module(tuple((path, path.stat().st_mtime_ns, path.stat().st_size) for path in files))


def plain_matrices(checkpoint: Path) -> list[str]:
    """Modules whose matrix the checkpoint stores as plain floats, without a scale or the like beside it."""
    return sorted(
        name
        for name, headers in headers_of_files(weight_files(checkpoint)).items()
        if "weight" in headers
        and headers["weight"].dtype in FLOATS
        and len(headers["weight"].shape) == 2
        and not any(rest.startswith("weight_") for rest in headers)
    )


@functools.lru_cache(maxsize=4)
def headers_by_module(files: tuple[tuple[Path, int, int], ...]) -> dict[str, Headers]:
    """{module: its headers}; files: (path, time of change, bytes), by which a changed file is read again."""
    by_module: dict[str, Headers] = {}
    for path, _, _ in files:
        for header in headers_of_file(path):
            names = header.key.split(".")
            for i in range(1, len(names)):
                by_module.setdefault(".".join(names[:i]), {})[".".join(names[i:])] = header
    return by_module


def read_tensor(header: Header) -> torch.Tensor:
    """The tensor itself, read from its file."""
    from quantharm.models.completeness import open_weights

    with open_weights(header.file) as file:
        return file.get_tensor(header.key)


def read_part(header: Header, index: int) -> torch.Tensor:
    """Part `index` of a tensor along its first dimension, without reading the others."""
    from quantharm.models.completeness import open_weights

    with open_weights(header.file) as file:
        return file.get_slice(header.key)[index]


def module_tensors(checkpoint: Path, module: str) -> dict[str, torch.Tensor]:
    """{rest of the name: tensor} of one module, read from disk: kernels repack what they load."""
    return {rest: read_tensor(header) for rest, header in module_headers(checkpoint, module).items()}


@functools.lru_cache(maxsize=4)
def file_metadata(path: Path, modified_ns: int) -> dict[str, str]:
    """The strings in a file's header beside its tensors; modified_ns: by which a changed file is read again."""
    from quantharm.models.completeness import open_weights

    with open_weights(path) as file:
        return file.metadata() or {}


def stored_bytes(headers: Headers, *left_out: str) -> int:
    """Bytes of a module's tensors in the files, without those left out; the bias is no part of the matrix."""
    return sum(header.bytes for rest, header in headers.items() if rest not in ("bias", *left_out))


def is_held_dequantized(module: Any) -> bool:
    """Whether a module is a plain linear layer of 16 bits or more, though the file stores its matrix packed."""
    weight = getattr(module, "weight", None)
    return type(module) is torch.nn.Linear and weight is not None and weight.dtype.itemsize >= 2
