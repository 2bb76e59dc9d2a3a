"""Files that a machine cannot read now: they are not called damaged, and nobody is told to delete them."""

import json
from pathlib import Path

import gguf
import pyarrow
import pyarrow.parquet
import pytest
import safetensors
import safetensors.torch

from quantharm.common.errors import UserError
from quantharm.common.files import read_json, read_parquet
from quantharm.models.completeness import open_weights
from quantharm.quantizers.formats.gguf_file import read_file
from quantharm.scoring.head_file import read_head
from quantharm.scoring.stored_logits import open_store

READERS = {
    "a record": (read_json, Path, "read_text"),
    "a table": (read_parquet, pyarrow.parquet, "read_table"),
    "a store": (open_store, pyarrow.parquet, "ParquetFile"),
    "a head": (lambda path: read_head(path, {}), safetensors.torch, "load_file"),
    "weights": (open_weights, safetensors, "safe_open"),
    "a GGUF file": (lambda path: read_file(path, 0), gguf, "GGUFReader"),
}


@pytest.fixture(params=READERS)
def read_with(request, tmp_path, monkeypatch):
    """read_with(error): reads an existing file with a library that raises the error."""
    read, library, function = READERS[request.param]
    path = tmp_path / "file"
    path.write_text(json.dumps({}))

    def read_it(error):
        def fail(*_, **__):
            raise error

        monkeypatch.setattr(library, function, fail)
        read(path)

    return read_it


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), OSError(24, "Too many open files"), OSError("I/O (os error 5)")]
)
def test_what_the_machine_cannot_read_is_not_damaged(read_with, error):
    with pytest.raises(UserError, match=r"cannot be read \(.*\); see that this job may read it") as caught:
        read_with(error)
    assert "damaged" not in str(caught.value)
    assert "delete" not in str(caught.value)


def test_little_memory_is_not_damage(read_with):
    with pytest.raises(MemoryError):
        read_with(pyarrow.ArrowMemoryError("malloc of size 9 failed"))


@pytest.mark.parametrize("kind", ["weights", "a head"])
def test_a_file_that_is_there_is_not_missing(kind, tmp_path, monkeypatch):
    """safetensors says so where a process has too many files open."""
    read, library, function = READERS[kind]
    path = tmp_path / "file"
    path.touch()

    def fail(*_, **__):
        raise FileNotFoundError(f"No such file or directory: {path}")

    monkeypatch.setattr(library, function, fail)
    with pytest.raises(UserError, match="cannot be read"):
        read(path)
