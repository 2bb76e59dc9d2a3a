"""The log-prob store: the baseline's log-probabilities over the whole vocabulary, one row a position, in Parquet.

2 bytes an entry: float16 log-probabilities, renormalised in float64 when read (error floor about 5e-7 nats). A row
group holds one prompt, or a part of a text window; it is written and read one group at a time, so memory does not
grow with the number of prompts. The metadata name everything the figures depend on; a reader refuses a store made
from anything else. Pages carry checksums: a flipped bit is an error, not a figure.
"""

import collections
import concurrent.futures
import itertools
import json
import os
import queue
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pyarrow.parquet
import torch

from quantharm.common.errors import UserError
from quantharm.common.records.logits import StoreMetadata

METADATA_KEY = b"quantharm"
FORMAT = 1
PAGE_BYTES, PAGE_ROWS = 2**17, 4  # so small that a page is copied and its checksum taken within a core's cache
# What a file with a flipped bit makes pyarrow and json raise; pages have checksums, the footer has none.
DAMAGE = (pyarrow.ArrowException, OSError, ValueError, TypeError, LookupError, AttributeError)


@dataclass(frozen=True)
class Positions:
    """Consecutive positions of one prompt or text window, as read from a store."""

    prompt_id: str
    category: str
    position: numpy.ndarray  # [n] int32: index of the predicted token within the whole sequence
    token_id: numpy.ndarray  # [n] int32: the predicted (target) token
    top_token_id: numpy.ndarray  # [n] int32: the baseline's most probable token, before rounding to float16
    log_probabilities: torch.Tensor  # [n, vocabulary] float16


def store_schema(vocabulary: int, metadata: Mapping[str, Any]) -> pyarrow.Schema:
    return pyarrow.schema(
        [
            ("prompt_id", pyarrow.string()),
            ("category", pyarrow.string()),
            ("position", pyarrow.int32()),
            ("token_id", pyarrow.int32()),
            ("top_token_id", pyarrow.int32()),
            ("log_probabilities", pyarrow.binary(2 * vocabulary)),  # little-endian float16
        ],
        metadata={METADATA_KEY: json.dumps({**metadata, "format": FORMAT, "vocabulary": vocabulary})},
    )


class StoreWriter:
    """Writes a store row group by row group; use as a context manager on a temporary path."""

    def __init__(self, path: Path, vocabulary: int, metadata: Mapping[str, Any]):
        self.schema = store_schema(vocabulary, metadata)
        self.vocabulary = vocabulary
        self.file = open(path, "wb")
        self.writer = pyarrow.parquet.ParquetWriter(
            self.file,
            self.schema,
            compression="none",
            use_dictionary=["prompt_id", "category"],
            write_statistics=["prompt_id", "position"],
            write_page_checksum=True,
            data_page_size=PAGE_BYTES,
            write_batch_size=PAGE_ROWS,
        )

    def __enter__(self):
        return self

    def __exit__(self, failure, *_):
        with self.file:
            self.writer.close()
            if failure is None:
                self.file.flush()
                os.fsync(self.file.fileno())  # a full disk is told now, not when the file is read

    def write(self, prompt_id: str, category: str, position, token_id, log_probabilities: torch.Tensor) -> None:
        """One row group; log_probabilities: [n, vocabulary], any float dtype."""
        block = numpy.ascontiguousarray(on_host(log_probabilities.to(torch.float16)).numpy())  # [n, vocabulary]
        count = len(block)
        entries = pyarrow.FixedSizeBinaryArray.from_buffers(
            pyarrow.binary(2 * self.vocabulary), count, [None, pyarrow.py_buffer(block)]
        )
        columns = [[prompt_id] * count, [category] * count, list(position), list(token_id), largest(log_probabilities)]
        arrays = [pyarrow.array(c, type=t) for c, t in zip(columns, self.schema.types[:5], strict=True)]
        self.writer.write_table(pyarrow.Table.from_arrays([*arrays, entries], schema=self.schema))


def largest(values: torch.Tensor) -> list[int]:
    """Index of the largest value of each row; by numpy on a CPU, where it takes a tenth of the time of torch."""
    return values.argmax(-1).tolist() if values.is_cuda else values.float().numpy().argmax(-1).tolist()


def on_host(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in memory of the host; from a GPU through pages that it can write to by itself."""
    if not tensor.is_cuda:
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor)


def open_store(path: Path) -> pyarrow.parquet.ParquetFile:
    try:
        return pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)
    except FileNotFoundError:
        raise UserError(f"the log-prob store {path} does not exist; run the stage `logits`") from None
    except DAMAGE as error:
        raise damaged(path, error) from None


def damaged(path: Path, error: BaseException) -> UserError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(f"the log-prob store {path} is damaged ({reason}); delete it and run the same command again")


def store_metadata(path: Path) -> StoreMetadata:
    """What the store was made from; raises UserError when the file is not a log-prob store."""
    file = open_store(path)
    try:
        metadata = file.schema_arrow.metadata or {}
        recorded = json.loads(metadata[METADATA_KEY]) if METADATA_KEY in metadata else None
    except DAMAGE as error:
        raise damaged(path, error) from None
    if recorded is None:
        raise UserError(f"{path} is not a log-prob store; delete it and run the stage `logits`")
    return recorded


def require_same(path: Path, expected: Mapping[str, Any]) -> StoreMetadata:
    """The store's metadata; raises UserError naming both values where one of `expected` differs."""
    metadata = store_metadata(path)
    for key, value in {"format": FORMAT, **expected}.items():
        if metadata.get(key) != value:
            raise UserError(
                f"the log-prob store {path} was made with {key} {metadata.get(key)!r}, but this cell has {value!r}; "
                "figures of the two cannot be compared: delete the store and run the same command again"
            )
    return metadata


def check_columns(file: pyarrow.parquet.ParquetFile, path: Path) -> None:
    """Raises UserError unless columns and vocabulary are the ones that the store was written with."""
    try:
        expected = store_schema(store_metadata(path)["vocabulary"], {}).remove_metadata()
        if file.schema_arrow.remove_metadata() == expected:
            return
    except DAMAGE as error:
        raise damaged(path, error) from None
    raise damaged(path, ValueError("its columns are not those it was written with"))


def read_group(file: pyarrow.parquet.ParquetFile, group: int, pinned: bool) -> Positions:
    """One row group; `pinned` puts its log-probabilities where a GPU can fetch them by itself."""
    table = file.read_row_group(group, use_threads=False)  # the caller's threads read other groups
    chunks = table.column("log_probabilities").chunks
    entries = chunks[0] if len(chunks) == 1 else pyarrow.concat_arrays(chunks)
    vocabulary = entries.type.byte_width // 2
    flat = numpy.frombuffer(entries.buffers()[1], dtype=numpy.float16, count=len(entries) * vocabulary)
    log_probabilities = torch.empty((len(entries), vocabulary), dtype=torch.float16, pin_memory=pinned)
    numpy.copyto(log_probabilities.numpy(), flat.reshape(len(entries), vocabulary))
    return Positions(
        table.column("prompt_id")[0].as_py(),
        table.column("category")[0].as_py(),
        table.column("position").to_numpy(),
        table.column("token_id").to_numpy(),
        table.column("top_token_id").to_numpy(),
        log_probabilities,
    )


def read_store(path: Path, readers: int = 1, pinned: bool = False) -> Iterator[Positions]:
    """The store's row groups in order, `readers` more being read while the caller works on one.

    pinned: for a GPU, which then fetches log-probabilities while it computes.
    """
    file = open_store(path)
    check_columns(file, path)
    files: queue.SimpleQueue = queue.SimpleQueue()  # an open file is read by one thread at a time
    for opened in [file, *(open_store(path) for _ in range(readers - 1))]:
        files.put(opened)

    def read(group: int) -> Positions:
        own = files.get()
        try:
            return read_group(own, group, pinned)
        except DAMAGE as error:
            raise damaged(path, error) from None
        finally:
            files.put(own)

    groups = iter(range(file.num_row_groups))
    with concurrent.futures.ThreadPoolExecutor(readers) as pool:
        ahead = collections.deque(pool.submit(read, group) for group in itertools.islice(groups, readers))
        while ahead:
            current = ahead.popleft().result()
            ahead.extend(pool.submit(read, group) for group in itertools.islice(groups, 1))
            yield current
