"""The only clock of the tests: how long they wait for something before they take it for hung.

It is no measure of speed: what takes seconds on a quiet machine may take a hundred times as long on a slow one that
does other work beside. No test measures time, and none sleeps in the hope that something has happened meanwhile: it
waits for the event (tests/workflow/test_tools.py looks for those that do).
"""

import contextlib
import subprocess
import time
from collections.abc import Callable
from typing import TypeVar

HUNG_SECONDS = 3600  # no test, no fixture and no job of theirs takes more than minutes
POLL_SECONDS = 0.05
Found = TypeVar("Found")


def wait_until(
    condition: Callable[[], Found], complaint: Callable[[], str] | str, process: subprocess.Popen | None = None
) -> Found:
    """What condition() returns as soon as that is true; `process` has to be running until then.

    Raises:
        AssertionError: with the complaint; the process has ended, or something hangs.
    """
    end = time.monotonic() + HUNG_SECONDS
    while not (value := condition()):
        ended = process is not None and process.poll() is not None
        if ended and (value := condition()):  # it was the last thing that the process did
            break
        if ended or time.monotonic() > end:
            why = f"the process has ended with {process.returncode}" if ended else f"not within {HUNG_SECONDS} s"
            raise AssertionError(f"{complaint if isinstance(complaint, str) else complaint()}: {why}")
        time.sleep(POLL_SECONDS)
    return value


def end(process: subprocess.Popen) -> None:
    """SIGKILL, if it still runs, and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    process.wait(HUNG_SECONDS)
