"""Writes the store of the baseline's predictions, whose format is scoring.store_format's."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch

from quantharm.scoring.forward import index_of_largest
from quantharm.scoring.store_format import LOG_PROBABILITIES, entries_of, store_schema

PAGE_BYTES, PAGE_ROWS = 2**17, 4  # a page is so small that copy and checksum stay within a core's cache


class StoreWriter:
    """Writes a store, one row group at a time; a context manager, for a temporary path.

    The store holds hidden states where the metadata have `hidden_states` {width, dtype}, else log-probabilities.
    """

    def __init__(self, path: Path, vocabulary: int, metadata: Mapping[str, Any]):
        self.schema = store_schema(vocabulary, metadata)
        self.entries = entries_of({**metadata, "vocabulary": vocabulary})
        self.file = open(path, "wb")
        self.writer = pyarrow.parquet.ParquetWriter(
            self.file,
            self.schema,
            compression="none",
            use_dictionary=["prompt_id", "category"],
            write_statistics=["prompt_id", "position"],
            write_page_checksum=True,
            data_page_size=PAGE_BYTES,
            write_batch_size=max(PAGE_ROWS, PAGE_BYTES // self.entries.row_bytes),
        )

    def __enter__(self):
        return self

    def __exit__(self, failure, *_):
        with self.file:
            self.writer.close()
            if failure is None:
                self.file.flush()
                os.fsync(self.file.fileno())  # so that a full disk raises now, not when the file is read

    def write(self, prompt_id: str, category: str, position, token_id, values: torch.Tensor) -> None:
        """Writes a row group of n positions.

        position, token_id: [n] numbers; values: hidden states [n, width], or log-probabilities [n, vocabulary] of any
        float dtype.
        """
        block = on_host(values.to(self.entries.dtype)).contiguous().view(torch.uint8).numpy()  # [n, bytes of a row]
        count = len(block)
        entries = pyarrow.FixedSizeBinaryArray.from_buffers(
            pyarrow.binary(self.entries.row_bytes), count, [None, pyarrow.py_buffer(block)]
        )
        columns = [[prompt_id] * count, [category] * count, list(position), list(token_id)]
        columns += [largest(values)] if self.entries.name == LOG_PROBABILITIES else []
        arrays = [pyarrow.array(c, type=t) for c, t in zip(columns, self.schema.types[:-1], strict=True)]
        self.writer.write_table(pyarrow.Table.from_arrays([*arrays, entries], schema=self.schema))


def largest(values: torch.Tensor) -> list[int]:
    """Index of the largest value of each row."""
    return index_of_largest(values).tolist()


def on_host(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in the host's memory; a GPU's is copied into page-locked memory, which the GPU writes by itself."""
    if not tensor.is_cuda:
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor)
