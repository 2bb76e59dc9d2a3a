"""Shared by every stage: the command line, the sentence on which it ends after a fault, and the time of its parts."""

import argparse
import atexit
import contextlib
import errno
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn, cast

from quantharm.common.commit import git_commit
from quantharm.common.errors import UserError, host_is_full
from quantharm.common.records.parts import TimingRecord

IMPORTED = time.perf_counter()
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def stage_parser(description: str) -> argparse.ArgumentParser:
    """A parser whose `--help` shows the module's docstring as written, and each flag's default."""

    class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
        pass

    return argparse.ArgumentParser(description=description, formatter_class=Formatter, allow_abbrev=False)


def cell_parser(description: str) -> argparse.ArgumentParser:
    """stage_parser with the flags of a stage that loads one cell."""
    parser = stage_parser(description)
    parser.add_argument("--quantization", type=Path, required=True, help="quantization.json of the cell")
    add_device(parser)
    return parser


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds the flag --device to a stage's parser."""
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])


def begin_offline_stage() -> None:
    """Notes the commit of the modules that run, and keeps libraries off the network: only fetch stages may use it."""
    git_commit()
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def begin_model_stage() -> "Timing":
    """Goes offline and imports what every model stage needs, which counts as the stage's start."""
    begin_offline_stage()
    timing = Timing()
    timing.imports()
    return timing


def run_stage(main: Callable[[], None]) -> None:
    """Runs a stage's main(); faults that the user can mend end in a sentence and exit code 1, others in a traceback."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    logging.getLogger("torchao").setLevel(logging.ERROR)  # it warns of each of its libraries that needs a GPU
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except Exception as error:
        sentence = sentence_for(error)
        if sentence is None:
            raise
        sys.exit(f"error: {sentence}")
    leave()


def leave() -> NoReturn:
    """Ends with exit code 0 without destroying every module first.

    With torch and transformers that takes 1.2 of a stage's 5 seconds: 30 of the default run's 250 on two cores. Threads
    are waited for, atexit functions called and output flushed.
    """
    shutdown: Callable[[], None] = vars(threading)["_shutdown"]  # waits for threads; no public name does
    shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def sentence_for(error: Exception) -> str | None:
    """The sentence for a fault of the machine; None for any other.

    Some libraries have exceptions of their own and are recognised by their words: safetensors says `No space left on
    device (os error 28)`.
    """
    text = str(error)
    if getattr(error, "errno", None) in DISK_FULL or any(f"(os error {number})" in text for number in DISK_FULL):
        file = getattr(error, "filename", None)
        where = f" while writing {file}" if file else ""
        return f"the disk (or your quota) is full{where}; free some space and run the same command again"
    if host_is_full(error):
        return "out of memory; give the job more (`billion_parameters:` in the config) or choose a smaller model"
    if type(error).__name__ == "OutOfMemoryError":  # torch's; by name, as torch may not be imported
        return f"the GPU's memory is too small ({text.split('. ')[0]}); use a larger GPU or `gpus:`"
    return None


def seconds_since_process_start() -> float:
    """Since the interpreter started, where Linux tells; else since this module was imported."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, IndexError, ValueError):
        return time.perf_counter() - IMPORTED


class Timing:
    """Seconds by part of a stage: `start` (interpreter, imports), `load`, `model` (passes, quantizing, scanning)."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin

    def imports(self) -> None:
        """Imports what every model stage needs, so that it counts as start and not as load."""
        import torch
        import transformers

        # transformers imports lazily: these are used when a model is loaded.
        _ = torch.nn, transformers.AutoModelForCausalLM.from_pretrained, transformers.AutoTokenizer
        self.started()

    def started(self) -> None:
        """Counts everything until now as the start."""
        self.seconds["start"] = seconds_since_process_start()

    def record(self) -> TimingRecord:
        """{start_seconds, load_seconds, model_seconds, other_seconds, total_seconds}"""
        total = seconds_since_process_start()
        parts = {f"{name}_seconds": round(value, 3) for name, value in self.seconds.items()}
        parts["other_seconds"] = round(total - sum(self.seconds.values()), 3)
        return cast(TimingRecord, parts | {"total_seconds": round(total, 3)})
