"""Result files are whole or not there; damage ends in one sentence."""

import hashlib
import math
import os

import pandas
import pytest

from quantharm.common.errors import UserError
from quantharm.common.files import (
    finite_or_none,
    read_json,
    read_parquet,
    replacing,
    replacing_folder,
    sha256_of_file,
    sha256_of_text,
    write_json,
    write_parquet,
    write_text,
)


def everything_in(folder) -> list[str]:
    return sorted(os.listdir(folder))


def fail_after_writing(path, error) -> None:
    path.write_text("half")
    raise error


def test_replacing_renames_at_the_end_and_not_before(tmp_path):
    path = tmp_path / "new" / "result.txt"
    with replacing(path) as temporary:
        temporary.write_text("whole")
        assert temporary.parent == path.parent  # one file system: the rename is atomic
        assert not path.exists()
    assert path.read_text() == "whole"
    assert everything_in(path.parent) == ["result.txt"]


def test_replacing_leaves_nothing_on_an_exception(tmp_path):
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "result.txt") as temporary:
        fail_after_writing(temporary, ZeroDivisionError)
    assert everything_in(tmp_path) == []


def test_replacing_keeps_the_old_file_on_an_exception(tmp_path):
    path = tmp_path / "result.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        fail_after_writing(temporary, KeyboardInterrupt)
    assert path.read_text() == "old"
    assert everything_in(tmp_path) == ["result.txt"]


def test_replacing_replaces_an_old_file(tmp_path):
    path = tmp_path / "result.txt"
    write_text(path, "old and longer")
    write_text(path, "new")
    assert path.read_text() == "new"


def test_replacing_folder_puts_a_whole_folder_in_place(tmp_path):
    path = tmp_path / "checkpoint"
    path.mkdir()
    (path / "stale.txt").write_text("old")
    (tmp_path / ".checkpoint.killed.part").mkdir()  # left by a killed job
    with replacing_folder(path) as folder:
        (folder / "weights").write_text("new")
        assert (path / "stale.txt").exists()
    assert everything_in(tmp_path) == ["checkpoint"]
    assert everything_in(path) == ["weights"]
    assert path.stat().st_mode & 0o777 == 0o755


def test_replacing_folder_leaves_nothing_on_an_exception(tmp_path):
    with pytest.raises(ZeroDivisionError), replacing_folder(tmp_path / "checkpoint") as folder:
        fail_after_writing(folder / "weights", ZeroDivisionError)
    assert everything_in(tmp_path) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_write_json_refuses_what_json_cannot_hold(tmp_path, value):
    path = tmp_path / "result.json"
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": [1.0, value]})
    assert everything_in(tmp_path) == []


def test_json_round_trip(tmp_path):
    record = {"ü": [1, 0.1, None, True, "日本 |"], "b": {"c": 1e-300}}
    write_json(tmp_path / "result.json", record)
    assert read_json(tmp_path / "result.json") == record
    assert "日本" in (tmp_path / "result.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1', b"\xff\xfe", b"[1, 2,]", b"\x00" * 20])
def test_damaged_json_ends_in_one_sentence(tmp_path, content):
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged") as caught:
        read_json(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def table() -> pandas.DataFrame:
    return pandas.DataFrame({"prompt_id": ["a", "b"], "tokens": [[1, 2], []], "value": [0.5, math.inf]})


def test_parquet_round_trip(tmp_path):
    path = tmp_path / "rows.parquet"
    write_parquet(path, table())
    back = read_parquet(path)
    assert back["prompt_id"].tolist() == ["a", "b"]
    assert [list(t) for t in back["tokens"]] == [[1, 2], []]
    assert read_parquet(path, ["value"]).columns.tolist() == ["value"]


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_truncated_parquet_ends_in_one_sentence(tmp_path, keep):
    path = tmp_path / "rows.parquet"
    write_parquet(path, table())
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(UserError, match="is damaged") as caught:
        read_parquet(path)
    assert "\n" not in str(caught.value)


def test_parquet_with_a_flipped_byte_in_its_data_is_noticed(tmp_path):
    path = tmp_path / "rows.parquet"
    write_parquet(path, pandas.DataFrame({"value": [i * 1.1 for i in range(5000)]}))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        read_parquet(path)


def test_a_flipped_bit_anywhere_in_a_parquet_file_changes_no_figure(tmp_path):
    """Its footer has no checksum, and names and types the columns."""
    path = tmp_path / "rows.parquet"
    write_parquet(path, table())
    good, data = read_parquet(path), path.read_bytes()
    caught = 0
    for place in range(0, len(data), 5):
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 << place % 8)]) + data[place + 1 :])
        try:
            read = read_parquet(path)
        except UserError:
            caught += 1
        else:
            pandas.testing.assert_frame_equal(read, good, check_dtype=False)
    assert caught > len(data) / 20


def test_a_flipped_bit_anywhere_in_a_json_file_changes_no_figure(tmp_path):
    path = tmp_path / "record.json"
    record = {"name": "ünï", "figure": 0.1234567, "none": None, "list": [1, 2.5e-9, True], "nested": {"a": "b"}}
    write_json(path, record)
    data = path.read_bytes()
    caught = 0
    for place in range(len(data)):
        for bit in range(8):
            path.write_bytes(data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :])
            try:
                read = read_json(path)
            except UserError:
                caught += 1
            else:
                assert {key: read[key] for key in record} == record
    assert caught > 4 * len(data)


def test_left_overs_of_a_killed_job_are_removed_by_the_next(tmp_path):
    for name in ("rows.parquet", "checkpoint"):
        (tmp_path / f".{name}.1234.part").write_text("half")
    (tmp_path / ".other.1234.part").write_text("half")
    write_text(tmp_path / "rows.parquet", "whole")
    with replacing_folder(tmp_path / "checkpoint"):
        pass
    assert everything_in(tmp_path) == [".other.1234.part", "checkpoint", "rows.parquet"]


def test_missing_files_end_in_one_sentence(tmp_path):
    for read in (read_json, read_parquet):
        with pytest.raises(UserError, match="does not exist; run the stage that makes it"):
            read(tmp_path / "none")


def test_a_column_that_is_not_there_ends_in_one_sentence(tmp_path):
    write_parquet(tmp_path / "rows.parquet", table())
    with pytest.raises(UserError, match="is damaged") as caught:
        read_parquet(tmp_path / "rows.parquet", ["other"])
    assert "\n" not in str(caught.value)


def test_hashes(tmp_path):
    path = tmp_path / "x"
    path.write_bytes("grün".encode() * 100_000)
    assert sha256_of_file(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sha256_of_text("grün") == hashlib.sha256(b"gr\xc3\xbcn").hexdigest()


def test_finite_or_none():
    assert [finite_or_none(v) for v in (1.5, math.nan, math.inf)] == [1.5, None, None]
