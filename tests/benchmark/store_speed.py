"""The log-prob store against plain files of the same bytes: writing until the disk has them, and reading them back.

    PYTHONPATH=workflow python tests/benchmark/store_speed.py [--vocabulary 32000] [--gigabytes 2] [--folder .]

Row groups hold 2**24 entries, as the stages write them; the disk's cache of a file is dropped before it is read.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from quantharm.scoring.forward import SLICE_ELEMENTS
from quantharm.scoring.paired_logits import READERS_FOR_GPU
from quantharm.scoring.store_format import LOG_PROBABILITIES
from quantharm.scoring.store_writer import StoreWriter
from quantharm.scoring.stored_logits import read_store


def write_store(path: Path, block: torch.Tensor, groups: int) -> None:
    positions = list(range(len(block)))
    with StoreWriter(path, block.shape[1], {"model": "benchmark"}) as store:
        for group in range(groups):
            store.write(f"p{group}", "c", positions, positions, block)


def write_plain(path: Path, content: bytes, groups: int) -> None:
    with open(path, "wb", buffering=0) as stream:
        for _ in range(groups):
            stream.write(content)
        os.fdatasync(stream.fileno())


def read_plain(path: Path) -> None:
    buffer = bytearray(2**24)
    with open(path, "rb", buffering=0) as stream:
        while stream.readinto(buffer):
            pass


def read_through(path: Path, for_gpu: bool) -> None:
    for _ in read_store(path, READERS_FOR_GPU[LOG_PROBABILITIES] if for_gpu else 1, for_gpu):
        pass


def forget(path: Path) -> None:
    """Drop a file's pages from the cache, so that reading it means reading the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def seconds_of(function, *arguments) -> float:
    begin = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("."))
    arguments = parser.parse_args()
    rows = min(256, SLICE_ELEMENTS // arguments.vocabulary)
    block = torch.randn(rows, arguments.vocabulary, device="cuda" if torch.cuda.is_available() else "cpu")
    content = block.half().cpu().numpy().tobytes()
    size = len(content)
    groups = max(1, round(arguments.gigabytes * 1e9 / size))
    rates: dict[str, list[float]] = {"write": [], "plain write": [], "read": [], "plain read": []}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        store, plain = Path(folder) / "store", Path(folder) / "plain"
        for _ in range(arguments.rounds):
            rates["plain write"].append(seconds_of(write_plain, plain, content, groups))
            rates["write"].append(seconds_of(write_store, store, block, groups))
            forget(plain)
            rates["plain read"].append(seconds_of(read_plain, plain))
            forget(store)
            rates["read"].append(seconds_of(read_through, store, block.is_cuda))
    for name in ("write", "read"):
        ours, theirs = (groups * size / 1e9 / median(rates[key]) for key in (name, f"plain {name}"))
        print(f"{name:6} {ours:.2f} GB/s, plain file {theirs:.2f} GB/s, share {ours / theirs:.0%}")


if __name__ == "__main__":
    main()
