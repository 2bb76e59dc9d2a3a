"""The file that is written beside its maker: all of it, in order, in bounded memory, and no failure goes unnoticed."""

import errno
import os
import random
import threading

import pytest

from quantharm.scoring import background_file
from quantharm.scoring.background_file import BackgroundFile


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(background_file, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(background_file, "SYNC_BYTES", 10_000)


def test_what_is_written_arrives_in_order_whatever_the_sizes(tmp_path):
    draw = random.Random(0)
    pieces = [draw.randbytes(draw.choice([0, 1, 10, 999, 1000, 5000])) for _ in range(500)]
    with BackgroundFile(tmp_path / "file") as file:
        assert [file.write(piece) for piece in pieces] == list(map(len, pieces))
        file.synchronise()
        assert (tmp_path / "file").read_bytes() == b"".join(pieces)
        assert not file.closed
    assert file.closed


def test_nothing_is_asked_of_the_disk_before_it_is_written(tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: sizes.append(os.fstat(descriptor).st_size))
    with BackgroundFile(tmp_path / "file") as file:
        for _ in range(100):
            file.write(bytes(1000))
        file.synchronise()
    assert len(sizes) == 11
    assert all(size >= 10_000 * (i + 1) for i, size in enumerate(sizes[:10]))
    assert sizes[-1] == 100_000


def write_until_it_fails(file: BackgroundFile) -> None:
    for _ in range(1000):
        file.write(bytes(1000))
    pytest.fail("a thousand blocks were taken though none could be written")


@pytest.mark.parametrize("operation", ["write", "fdatasync"])
def test_what_fails_in_the_background_is_raised(tmp_path, monkeypatch, operation):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with BackgroundFile(tmp_path / "file") as file:
        if operation == "write":
            file.write_block = fail
        else:
            monkeypatch.setattr(os, "fdatasync", fail)
        with pytest.raises(OSError, match="No space left"):
            write_until_it_fails(file)
    assert file.closed


def test_little_waits_to_be_written(tmp_path):
    gate, written = threading.Event(), []

    def slow(block):
        gate.wait()
        written.append(len(block))

    with BackgroundFile(tmp_path / "file") as file:
        file.write_block = slow
        maker = threading.Thread(target=lambda: [file.write(bytes(1000)) for _ in range(50)])
        maker.start()
        maker.join(0.2)
        stopped_with = len(file.writes) if maker.is_alive() else None
        gate.set()
        maker.join()
        file.synchronise()
    assert stopped_with == background_file.WAITING_BLOCKS  # and one that is being written
    assert len(written) == 51  # the last one is what synchronise hands over


def test_threads_end_with_the_file_whatever_is_raised(tmp_path):
    def write_and_raise() -> None:
        with BackgroundFile(tmp_path / "file") as file:
            file.write(bytes(2000))
            raise KeyError

    before = threading.active_count()
    with pytest.raises(KeyError):
        write_and_raise()
    assert threading.active_count() == before
