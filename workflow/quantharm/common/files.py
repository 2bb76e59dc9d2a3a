"""Reading and writing of result files: a file under its final name is always whole."""

import concurrent.futures
import contextlib
import glob
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from quantharm.common.errors import UserError, first_line, refuse_unread

JsonObject = dict[str, Any]  # read from anybody's file; its keys and values are not checked yet
DIGEST = "record_sha256"  # the key in each JSON record
# Raised by pyarrow on a file with flipped bits, some without a message.
DAMAGE_OF_PARQUET = (OSError, ValueError, TypeError, LookupError, AttributeError, NotImplementedError, MemoryError)
HASHED_AT_ONCE = 4  # files
LARGEST_INPUT_BYTES = 64 * 2**20  # of a text or prompt suite, read as a whole; WikiText-2's test has 1.3 MB


def remove_left_overs(path: Path) -> None:
    """Removes unfinished files of a killed job; no two jobs write one file at a time."""
    for left_over in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        if left_over.is_dir():
            shutil.rmtree(left_over, ignore_errors=True)
        else:
            left_over.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it when the block ends well and removed when it does not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_left_overs(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place when the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_left_overs(path)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    temporary.chmod(0o755)
    try:
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def digest_of(record: Mapping[str, object]) -> str:
    """sha256 of a record without its own digest; equal for a record as written and as read."""
    rest = {key: value for key, value in record.items() if key != DIGEST}
    return sha256_of_text(json.dumps(rest, sort_keys=True))


def write_json(path: Path, record: Mapping[str, object]) -> None:
    """Writes indented JSON with its digest; raises ValueError for NaN and infinity, which JSON cannot hold."""
    sealed = json.loads(json.dumps(record, allow_nan=False))
    sealed[DIGEST] = digest_of(sealed)
    write_text(path, json.dumps(sealed, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The record in `path`; raises UserError when it is missing, empty or damaged.

    A flipped digit leaves valid JSON with another figure, so the digest is compared. A record without one, written by
    another program, is accepted.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run the stage that makes it") from None
    except (ValueError, OSError) as error:
        refuse_unread(path, error)
        raise UserError(f"{path} is damaged ({error}); delete it and run the same command again") from None
    if isinstance(record, dict) and record.pop(DIGEST, None) not in (None, digest_of(record)):
        raise UserError(f"{path} was changed after it was written; delete it and run the same command again")
    return record


def column_digest(name: str, column) -> str:
    """sha256 of a pyarrow column's name and values."""
    return sha256_of_text(f"{name} {column.to_pylist()!r}")


def table_digests(table) -> dict[str, str]:
    """Digests of a pyarrow table's columns, and of the types that pandas gives them."""
    pandas_types = (table.schema.metadata or {}).get(b"pandas", b"")
    return {name: column_digest(name, table[name]) for name in table.column_names} | {
        "": hashlib.sha256(pandas_types).hexdigest()
    }


def write_parquet(path: Path, frame) -> None:
    """Writes a pandas.DataFrame as Parquet, with a digest of each column, so that any damage is noticed.

    Parquet's own checksums cover its pages, not the footer, which names and types the columns.
    """
    import pyarrow.parquet

    table = pyarrow.Table.from_pandas(frame, preserve_index=False)
    metadata = table.schema.metadata | {DIGEST.encode(): json.dumps(table_digests(table)).encode()}
    with replacing(path) as temporary:
        pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), temporary, write_page_checksum=True)


def read_parquet(path: Path, columns: list[str] | None = None):
    """The table in `path` as a pandas.DataFrame; raises UserError when it is missing, empty or damaged."""
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path, columns=columns, page_checksum_verification=True)
        if missing := set(columns or ()) - set(table.column_names):
            raise ValueError(f"it has no column {', '.join(sorted(missing))}")
        written = json.loads((table.schema.metadata or {}).get(DIGEST.encode(), b"{}"))
        digests = table_digests(table)
        if written and (digests.items() - written.items() or (columns is None and digests != written)):
            raise ValueError("it was changed after it was written")
        return table.to_pandas()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run the stage that makes it") from None
    except DAMAGE_OF_PARQUET as error:
        refuse_unread(path, error)
        raise UserError(f"{path} is damaged ({first_line(error)}); delete it and run the same command again") from None


def sha256_of_file(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of_files(paths: list[Path]) -> dict[Path, str]:
    """sha256_of_file of each, several at a time: a core hashes 1 to 2 GB a second, and a fast disk reads several."""
    with concurrent.futures.ThreadPoolExecutor(min(HASHED_AT_ONCE, os.cpu_count() or 1)) as pool:
        return dict(zip(paths, pool.map(sha256_of_file, paths), strict=True))


def sha256_of_text(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def finite_or_none(value: float) -> float | None:
    """The value, or None where it is NaN or infinite, which JSON cannot hold."""
    return value if math.isfinite(value) else None
