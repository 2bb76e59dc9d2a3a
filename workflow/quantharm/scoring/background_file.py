"""A file that one thread writes and another brings to the disk, while its maker goes on making it.

What pyarrow asks of a file to write to, and no more. The maker encodes the next block while the last one is copied to
the system's cache and the one before reaches the disk; so none of the three waits for the sum of the others.
"""

import collections
import concurrent.futures
import os
from pathlib import Path

BLOCK_BYTES = 2**22  # handed to the thread that writes, at once
WAITING_BLOCKS = 4  # the most that wait to be written, so that memory is bounded
SYNC_BYTES = 2**27  # the disk gets to work after so many; else it would all be left to the end


class BackgroundFile:
    """Use as a context manager, and call `synchronise` before its end for a file that must be whole.

    What cannot be written is raised by a later `write`, or by `synchronise`.
    """

    def __init__(self, path: Path):
        self.stream = open(path, "wb")
        self.writer = concurrent.futures.ThreadPoolExecutor(1)
        self.disk = concurrent.futures.ThreadPoolExecutor(1)
        self.block: list[bytes] = []
        self.block_bytes = self.unsynced_bytes = 0
        self.writes: collections.deque[concurrent.futures.Future] = collections.deque()
        self.syncs: collections.deque[concurrent.futures.Future] = collections.deque()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with self.stream, self.disk, self.writer:  # the threads end first, whatever is raised
            pass

    @property
    def closed(self) -> bool:
        return self.stream.closed

    def write(self, data: bytes) -> int:
        self.block.append(data)
        self.block_bytes += len(data)
        if self.block_bytes >= BLOCK_BYTES:
            self.hand_over()
        return len(data)

    def hand_over(self) -> None:
        """Let the block be written beside what is made next."""
        self.writes.append(self.writer.submit(self.write_block, self.block))
        self.unsynced_bytes += self.block_bytes
        self.block, self.block_bytes = [], 0
        if self.unsynced_bytes >= SYNC_BYTES:
            self.syncs.append(self.disk.submit(self.sync_after, self.writes[-1]))
            self.unsynced_bytes = 0
        while len(self.writes) > WAITING_BLOCKS:
            self.writes.popleft().result()
        while self.syncs and self.syncs[0].done():
            self.syncs.popleft().result()

    def write_block(self, block: list[bytes]) -> None:
        for piece in block:
            self.stream.write(piece)
        self.stream.flush()

    def sync_after(self, write: concurrent.futures.Future) -> None:
        write.result()
        os.fdatasync(self.stream.fileno())

    def synchronise(self) -> None:
        """Return when the disk has everything; raises what it could not do."""
        self.hand_over()
        for pending in (*self.writes, *self.syncs):
            pending.result()
        os.fdatasync(self.stream.fileno())
