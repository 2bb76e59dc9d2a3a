"""Samples of the linear matrices in a checkpoint's safetensors files, slice by slice, in memory that does not grow."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from quantharm.common.checkpoint_files import weight_files
from quantharm.models.completeness import open_weights

T = TypeVar("T")
WEIGHTS_A_SAMPLE = 65_536  # of each matrix, and along each axis
SLABS = 4  # places in a matrix that a sample is taken from
ALIGNMENT = 256  # rows; the largest block of a codebook, so that blocks over the end of a row stay whole
SMALLEST = 32  # rows and columns; anything narrower is no linear matrix
FLOATS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
PACKED = ("U8", "I8", "I32", "U32", "I16", "F8_E4M3", "F8_E5M2", "F4")  # how quantized matrices are stored openly


@dataclass(frozen=True)
class Matrix:
    """A sample of one matrix. Lines lie along the axis: rows for 1, columns for 0. All float32."""

    name: str
    rows: int
    columns: int
    dtype: torch.dtype  # the narrowest that holds every sampled weight: bfloat16 weights may be stored as float32
    stored: torch.dtype
    row_slabs: list[torch.Tensor]  # each [rows, columns]: whole consecutive rows
    column_slabs: list[torch.Tensor]  # each [columns, rows]: parts of columns, at most ALIGNMENT rows of each
    column_lines: torch.Tensor  # [columns, rows]: whole columns
    sampled: int  # weights that the sample holds, those in rows and in columns counted once each


def narrowest(samples: list[torch.Tensor], stored: torch.dtype) -> torch.dtype:
    """The dtype of fewest significant bits that holds every weight."""
    for dtype in (torch.bfloat16, torch.float16):
        if dtype == stored or all(torch.equal(s.to(dtype).to(s.dtype), s) for s in samples):
            return dtype
    return stored


def starts(length: int, size: int, alignment: int) -> list[int]:
    """First lines of up to SLABS places spread over the length, each a multiple of the alignment."""
    last = max(0, length - size)
    places = {round(i * last / (SLABS - 1)) // alignment * alignment for i in range(SLABS)}
    return sorted(places)


def sample_matrix(name: str, matrix, rows: int, columns: int, stored: torch.dtype) -> Matrix:
    """The sample of a matrix [rows, columns]: a slice of a safetensors file, or a tensor; stored: its dtype."""
    tall = min(rows, max(1, WEIGHTS_A_SAMPLE // SLABS // columns))
    aligned = 1 if columns % ALIGNMENT == 0 else ALIGNMENT
    row_starts = starts(rows, tall, aligned)
    row_slabs = [matrix[s : s + tall, :] for s in row_starts]
    height = min(rows, ALIGNMENT)
    wide = min(columns, max(1, WEIGHTS_A_SAMPLE // SLABS // height))
    places = starts(rows, height, ALIGNMENT)
    first = starts(columns, wide, 1)
    column_slabs = [
        matrix[s : s + height, c : c + wide].t() for s, c in zip(places, spread(first, len(places)), strict=True)
    ]
    few = min(columns, max(8, WEIGHTS_A_SAMPLE // rows))
    middle = (columns - few) // 2
    column_lines = matrix[:, middle : middle + few].t()
    everything = [*row_slabs, *column_slabs, column_lines]
    return Matrix(
        name,
        rows,
        columns,
        narrowest(everything, stored),
        stored,
        [s.float() for s in row_slabs],
        [s.float().contiguous() for s in column_slabs],
        column_lines.float().contiguous(),
        min(rows * columns, sum(s.numel() for s in everything)),
    )


def spread(values: Sequence[T], count: int) -> list[T]:
    """`count` of the values, evenly spaced, repeated where there are fewer."""
    return [values[i * len(values) // count] for i in range(count)]


def linear_shape(shape: list[int]) -> tuple[int, int] | None:
    """(rows, columns) of a tensor that can be a linear layer's weight; None for any other."""
    return (shape[0], shape[1]) if len(shape) == 2 and min(shape) >= SMALLEST else None


def read_matrices(folder: Path, names: Collection[str]) -> Iterator[Matrix]:
    """Samples of the named matrices in the folder's safetensors files, one at a time; each expert of a stack apart."""
    for path in weight_files(folder):
        with open_weights(path) as file:
            for name in sorted(set(file.keys()) & set(names)):
                part = file.get_slice(name)
                dtype, shape = FLOATS[part.get_dtype()], part.get_shape()
                rows, columns = shape[-2:] if len(shape) > 1 else (0, 0)
                if len(shape) == 3 and linear_shape(shape[1:]):  # [experts, rows, columns]
                    for expert in spread(list(range(shape[0])), min(SLABS, shape[0])):
                        matrix = file.get_slice(name)[expert]
                        yield sample_matrix(f"{name}[{expert}]", matrix, rows, columns, dtype)
                elif linear_shape(shape):
                    yield sample_matrix(name, part, rows, columns, dtype)
