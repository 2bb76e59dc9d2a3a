"""The log-prob store: the baseline's log-probabilities over the whole vocabulary, one row a position, in Parquet.

2 bytes an entry: float16 log-probabilities, renormalised in float64 when read (error floor about 5e-7 nats). A row
group holds one prompt, or a part of a text window; it is written and read one group at a time, so memory does not
grow with the number of prompts. The metadata name everything the figures depend on; a reader refuses a store made
from anything else. Pages carry checksums: a flipped bit is an error, not a figure.
"""

import concurrent.futures
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pyarrow.parquet
import torch

from quantharm.errors import UserError

METADATA_KEY = b"quantharm"
FORMAT = 1
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


def store_schema(vocabulary: int, metadata: dict[str, Any]) -> pyarrow.Schema:
    return pyarrow.schema(
        [
            ("prompt_id", pyarrow.string()),
            ("category", pyarrow.string()),
            ("position", pyarrow.int32()),
            ("token_id", pyarrow.int32()),
            ("top_token_id", pyarrow.int32()),
            ("log_probabilities", pyarrow.binary(2 * vocabulary)),  # little-endian float16
        ],
        metadata={METADATA_KEY: json.dumps(metadata | {"format": FORMAT, "vocabulary": vocabulary})},
    )


class StoreWriter:
    """Writes a store row group by row group; use as a context manager on a temporary path."""

    def __init__(self, path: Path, vocabulary: int, metadata: dict[str, Any]):
        self.schema = store_schema(vocabulary, metadata)
        self.vocabulary = vocabulary
        self.writer = pyarrow.parquet.ParquetWriter(
            path,
            self.schema,
            compression="none",
            use_dictionary=["prompt_id", "category"],
            write_statistics=["prompt_id", "position"],
            write_page_checksum=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.writer.close()

    def write(self, prompt_id: str, category: str, position, token_id, log_probabilities: torch.Tensor) -> None:
        """One row group; log_probabilities: [n, vocabulary], any float dtype."""
        block = numpy.ascontiguousarray(log_probabilities.to(torch.float16).cpu().numpy())  # [n, vocabulary]
        count = len(block)
        entries = pyarrow.FixedSizeBinaryArray.from_buffers(
            pyarrow.binary(2 * self.vocabulary), count, [None, pyarrow.py_buffer(block)]
        )
        top_token_id = log_probabilities.argmax(-1).tolist()
        columns = [[prompt_id] * count, [category] * count, list(position), list(token_id), top_token_id]
        arrays = [pyarrow.array(c, type=t) for c, t in zip(columns, self.schema.types[:5], strict=True)]
        self.writer.write_table(pyarrow.Table.from_arrays([*arrays, entries], schema=self.schema))


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


def store_metadata(path: Path) -> dict[str, Any]:
    """What the store was made from; raises UserError when the file is not a log-prob store."""
    file = open_store(path)
    try:
        metadata = file.schema_arrow.metadata or {}
        found = json.loads(metadata[METADATA_KEY]) if METADATA_KEY in metadata else None
    except DAMAGE as error:
        raise damaged(path, error) from None
    if found is None:
        raise UserError(f"{path} is not a log-prob store; delete it and run the stage `logits`")
    return found


def require_same(path: Path, expected: dict[str, Any]) -> dict[str, Any]:
    """The store's metadata; raises UserError naming both values where one of `expected` differs."""
    found = store_metadata(path)
    for key, value in ({"format": FORMAT} | expected).items():
        if found.get(key) != value:
            raise UserError(
                f"the log-prob store {path} was made with {key} {found.get(key)!r}, but this cell has {value!r}; "
                "figures of the two cannot be compared: delete the store and run the same command again"
            )
    return found


def check_columns(file: pyarrow.parquet.ParquetFile, path: Path) -> None:
    """Raises UserError unless columns and vocabulary are the ones that the store was written with."""
    try:
        expected = store_schema(store_metadata(path)["vocabulary"], {}).remove_metadata()
        if file.schema_arrow.remove_metadata() == expected:
            return
    except DAMAGE as error:
        raise damaged(path, error) from None
    raise damaged(path, ValueError("its columns are not those it was written with"))


def read_store(path: Path) -> Iterator[Positions]:
    """The store's row groups in order, the next one being read while the caller works on this one."""
    file = open_store(path)
    check_columns(file, path)

    def read(group: int) -> Positions:
        try:
            table = file.read_row_group(group)
            entries = table.column("log_probabilities").combine_chunks()
            if isinstance(entries, pyarrow.ChunkedArray):
                entries = entries.chunk(0)
            vocabulary = entries.type.byte_width // 2
            flat = numpy.frombuffer(entries.buffers()[1], dtype=numpy.float16, count=len(entries) * vocabulary)
            return Positions(
                table.column("prompt_id")[0].as_py(),
                table.column("category")[0].as_py(),
                table.column("position").to_numpy(),
                table.column("token_id").to_numpy(),
                table.column("top_token_id").to_numpy(),
                torch.from_numpy(flat.reshape(len(entries), vocabulary).copy()),
            )
        except DAMAGE as error:
            raise damaged(path, error) from None

    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as reader:
        following = reader.submit(read, 0) if file.num_row_groups else None
        for group in range(file.num_row_groups):
            current = following.result()
            following = reader.submit(read, group + 1) if group + 1 < file.num_row_groups else None
            yield current
