"""Reads the store of the baseline's predictions, whose format is scoring.store_format's.

A store of anything but the caller's own trace, model, device or protocol is refused, and so is a damaged one: pages
carry checksums, so that a flipped bit is an error, not a figure.
"""

import concurrent.futures
import json
import queue
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pyarrow.parquet
import torch

from quantharm.common.ahead import results_ahead
from quantharm.common.errors import UserError, first_line, refuse_unread
from quantharm.common.records.logits import StoreMetadata
from quantharm.scoring.store_format import FORMATS, LOG_PROBABILITIES, METADATA_KEY, Entries, entries_of, store_schema

# Raised by pyarrow and json on a file with a flipped bit; pages have checksums, the footer has none.
DAMAGE = (pyarrow.ArrowException, OSError, ValueError, TypeError, LookupError, AttributeError)


@dataclass(frozen=True)
class Positions:
    """Consecutive positions of one prompt or text window; of the last two fields one is None."""

    prompt_id: str
    category: str
    position: numpy.ndarray  # [n] int32: index of the predicted token within the whole sequence
    token_id: numpy.ndarray  # [n] int32: the predicted (target) token
    top_token_id: numpy.ndarray | None  # [n] int32: the most probable token, before log-probabilities were rounded
    log_probabilities: torch.Tensor | None = None  # [n, vocabulary] float16
    hidden_states: torch.Tensor | None = None  # [n, width] in the dtype of the forward pass


def open_store(path: Path) -> pyarrow.parquet.ParquetFile:
    """The store's file; raises UserError where it is missing or damaged."""
    try:
        return pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)
    except FileNotFoundError:
        raise UserError(f"the log-prob store {path} does not exist; run the stage `logits`") from None
    except DAMAGE as error:
        raise damaged(path, error) from None


def damaged(path: Path, error: BaseException) -> UserError:
    """The message for a damaged store, with the first line of the error; raises what is the machine's fault."""
    refuse_unread(path, error)
    words = first_line(error)
    return UserError(f"the log-prob store {path} is damaged ({words}); delete it and run the same command again")


def store_metadata(path: Path) -> StoreMetadata:
    """A store's metadata; raises UserError where the file is missing, damaged or no store."""
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
    if metadata.get("format") not in FORMATS.values():
        raise UserError(
            f"the log-prob store {path} has format {metadata.get('format')!r}, which this version does not read (it "
            f"reads {', '.join(map(str, FORMATS.values()))}); delete the store and run the same command again"
        )
    for key, value in expected.items():
        if metadata.get(key) != value:
            raise UserError(
                f"the log-prob store {path} was made with {key} {metadata.get(key)!r}, but this cell has {value!r}; "
                "figures of the two cannot be compared: delete the store and run the same command again"
            )
    return metadata


def check_columns(file: pyarrow.parquet.ParquetFile, path: Path) -> None:
    """Raises UserError unless the columns are those that the metadata call for."""
    try:
        metadata = store_metadata(path)
        expected = store_schema(metadata["vocabulary"], metadata).remove_metadata()
        if file.schema_arrow.remove_metadata() == expected:
            return
    except DAMAGE as error:
        raise damaged(path, error) from None
    raise damaged(path, ValueError("its columns are not those it was written with"))


Wanted = Callable[[str, str], bool]  # (prompt_id, category) of a row group → whether it is read


def read_group(file: pyarrow.parquet.ParquetFile, group: int, entries: Entries, pinned: bool) -> Positions:
    """One row group; pinned: in page-locked memory, which a GPU reads by itself.

    Raises ValueError for one that no writer writes: another program may have written the file anew.
    """
    table = file.read_row_group(group, use_threads=False)  # other threads of the caller read other groups
    position = table.column("position").to_numpy()
    if any(column.null_count for column in table.columns):
        raise ValueError("a row lacks an entry")
    if not numpy.array_equal(position, position[0] + numpy.arange(len(position))):
        raise ValueError("the positions of a row group are not consecutive")
    chunks = table.column(entries.name).chunks
    stored = chunks[0] if len(chunks) == 1 else pyarrow.concat_arrays(chunks)
    flat = numpy.frombuffer(stored.buffers()[1], dtype=numpy.uint8, count=len(stored) * entries.row_bytes)
    values = torch.empty((len(stored), entries.width), dtype=entries.dtype, pin_memory=pinned)
    numpy.copyto(values.view(torch.uint8).numpy(), flat.reshape(len(stored), entries.row_bytes))
    of_log_probabilities = entries.name == LOG_PROBABILITIES
    return Positions(
        table.column("prompt_id")[0].as_py(),
        table.column("category")[0].as_py(),
        position,
        table.column("token_id").to_numpy(),
        table.column("top_token_id").to_numpy() if of_log_probabilities else None,
        **{entries.name: values},
    )


def is_wanted(file: pyarrow.parquet.ParquetFile, group: int, wanted: Wanted | None) -> bool:
    """Whether a row group is to be read."""
    if wanted is None:
        return True
    names = file.read_row_group(group, columns=["prompt_id", "category"], use_threads=False)
    return wanted(names.column("prompt_id")[0].as_py(), names.column("category")[0].as_py())


def read_store(path: Path, readers: int = 1, pinned: bool = False, wanted: Wanted | None = None) -> Iterator[Positions]:
    """The store's row groups in order; `readers` threads read ahead while the caller works on one.

    pinned: into page-locked memory, which a GPU reads while it computes. wanted: chooses the groups; None takes all.
    Raises UserError where the file is damaged.
    """
    file = open_store(path)
    check_columns(file, path)
    entries = entries_of(store_metadata(path))
    files: queue.SimpleQueue = queue.SimpleQueue()  # one thread at a time reads an open file
    for opened in [file, *(open_store(path) for _ in range(readers - 1))]:
        files.put(opened)

    def read(group: int) -> Positions | None:
        free = files.get()
        try:
            return read_group(free, group, entries, pinned) if is_wanted(free, group, wanted) else None
        except DAMAGE as error:
            raise damaged(path, error) from None
        finally:
            files.put(free)

    with concurrent.futures.ThreadPoolExecutor(readers) as pool:
        for current in results_ahead(pool, read, range(file.num_row_groups), readers):
            if current is not None:
                yield current
