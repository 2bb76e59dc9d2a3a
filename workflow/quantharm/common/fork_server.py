"""The server of warm starts: an interpreter with its libraries imported, which forks for each job that it is handed.

    python -P fork_server.py FOLDER PID [LIBRARY …]     answers at FOLDER/socket until the process PID has ended

A call is one message: JSON {words, folder, environment}, with the caller's open files 0 to 2. The job, a fork of a
fork, takes its caller's place and runs the module that the first word names. The answer is the status with which it
ended, as os.waitpid gives it. A message from the caller is the number of a signal for the job, which is killed if its
caller is gone. This file imports nothing of the package: each fork imports it anew, so an edited module counts.

No GPU may be touched before a fork, or the fork cannot use it: each library is tried in a fork of its own first, and
left out where importing it starts CUDA. Only some jobs import bitsandbytes or gptqmodel, so each does so itself.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn, TypedDict

LIBRARIES = (
    "torch",
    "pandas",
    "pyarrow.parquet",
    "scipy.special",
    "tqdm",
    "torch._dynamo",
    "torch.distributed.tensor",
    "transformers",
    "transformers.modeling_utils",
    "transformers.generation.utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
)
CUDA_NOT_STARTED = 3  # CUDA_ERROR_NOT_INITIALIZED
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
SECONDS_BETWEEN_LOOKS = 1.0
LARGEST_CALL_BYTES = 1 << 20
MANY_THREADS = 1024  # more than a processor has cores


class Call(TypedDict):
    """A command line that a job is to run in its caller's place."""

    words: list[str]  # the module and its flags
    folder: str
    environment: dict[str, str]
    path: list[str]  # where its interpreter looks for modules


def cuda_has_started() -> bool:
    """Whether this process has initialised CUDA's driver, after which its forks cannot use a GPU."""
    try:
        context = ctypes.c_void_p()
        return ctypes.CDLL("libcuda.so.1").cuCtxGetCurrent(ctypes.byref(context)) != CUDA_NOT_STARTED
    except OSError:  # no driver, no GPU
        return False


def in_a_fork(question: Callable[[], int]) -> int | None:
    """What a fork of this process answers; None where it ends without an answer."""
    reading, writing = os.pipe()
    asked = os.fork()
    if asked == 0:
        with contextlib.suppress(BaseException):
            os.write(writing, str(question()).encode())
        os._exit(0)
    os.close(writing)
    answered = os.read(reading, 32)
    os.close(reading)
    os.waitpid(asked, 0)
    return int(answered) if answered else None


def threads_with(library: str) -> int | None:
    """Threads that a library begins with when it is told to take many; None where it is missing or starts CUDA.

    Tried in a fork. Torch takes no more than the processor has cores where it has MKL; of others this is not known.
    """

    def threads() -> int:
        os.environ.update(OMP_NUM_THREADS=str(MANY_THREADS), MKL_NUM_THREADS=str(MANY_THREADS))
        module = importlib.import_module(library)
        if cuda_has_started():
            os._exit(1)
        return int(module.get_num_threads()) if library == "torch" else MANY_THREADS

    return in_a_fork(threads)


def import_libraries(libraries: tuple[str, ...], goes_on: Callable[[], bool]) -> int:
    """Imports those libraries that leave CUDA alone, and prints which, for as long as goes_on().

    Returns the threads that a job takes at most, however many it is given.
    """
    most = MANY_THREADS
    for library in libraries:
        if not goes_on():
            break
        threads = threads_with(library)
        print(f"{library}: {'left out' if threads is None else 'imported'}", flush=True)
        if threads is not None:
            importlib.import_module(library)
            most = min(most, threads)
    return most


def answer(address: str, goes_on: Callable[[], bool], attend_to: Callable[[socket.socket], NoReturn]) -> None:
    """Calls attend_to(connection) in a fork for each connection to the socket `address`, for as long as goes_on()."""
    gc.collect()
    gc.freeze()  # a fork's collections need neither look at what is here nor copy it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks that attend to a call
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(f"{address}.new")
        server.listen(64)
        os.rename(f"{address}.new", address)  # from now on it answers
        while goes_on():
            if select.select([server], [], [], SECONDS_BETWEEN_LOOKS)[0]:
                connection, _ = server.accept()
                if os.fork() == 0:
                    server.close()
                    attend_to(connection)
                connection.close()


def attend(
    connection: socket.socket, begin: Callable[[Call], NoReturn], kill: Callable[[int, int], None] = os.killpg
) -> NoReturn:
    """Starts a job in a fork of its own, hands signals on to it, kills it if its caller is gone, tells how it ended.

    begin: runs the job, in its caller's folder, environment and open files. kill: sends a signal to a job.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    text, files, _, _ = socket.recv_fds(connection, LARGEST_CALL_BYTES, 3)
    call: Call = json.loads(text)
    attending = os.getpid()
    job = os.fork()
    if job == 0:
        die_with(attending)
        connection.close()
        take_place(call, files)
        begin(call)
    for file in files:
        os.close(file)
    ended = os.pidfd_open(job)
    asked = connection.fileno()
    while ended not in (ready := select.select([asked, ended], [], [])[0]):
        if asked in ready:
            signal_number = connection.recv(64)
            with contextlib.suppress(ProcessLookupError):
                kill(job, int(signal_number) if signal_number else signal.SIGKILL)
    status = os.waitpid(job, 0)[1]
    with contextlib.suppress(OSError):
        connection.sendall(str(status).encode())
    os._exit(0)


def die_with(parent: int) -> None:
    """From now on this process is killed when its parent ends; else a job would go on beside its own repetition."""
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it has ended already
        os._exit(1)


def take_place(call: Call, files: list[int]) -> None:
    """Gives this process its caller's open files, environment and folder."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(call["environment"])
    os.chdir(call["folder"])


def run_module(words: list[str]) -> NoReturn:
    """`python -m` with these words, from the module's first line to the end of the process."""
    sys.argv = ["-m", *words[1:]]
    code = 0
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    vars(threading)["_shutdown"]()  # waits for threads; no public name does
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def set_threads(most: int) -> None:
    """As many threads as a job's own interpreter would take; the libraries read how many when the server started.

    most: as import_libraries() returns it. The number decides how sums are divided, and so their last digits.
    """
    asked = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(min(asked, most))
    if "numpy" in sys.modules:
        with contextlib.suppress(ImportError):  # many libraries bring it
            import threadpoolctl

            of_blas = int(os.environ.get("OPENBLAS_NUM_THREADS") or asked)
            threadpoolctl.threadpool_limits(min(of_blas, len(os.sched_getaffinity(0))), user_api="blas")


def begin_stage(call: Call, most: int) -> NoReturn:
    """The job of a warm start: a stage, in a session of its own; it takes at most so many threads."""
    os.setsid()
    added = [folder for folder in sys.path if folder not in call["path"]]  # by libraries, as they were imported
    sys.path[:] = call["path"] + added
    set_threads(most)
    sys.orig_argv = [sys.executable, "-m", *call["words"]]
    run_module(call["words"])


def serve(folder: str, run: int, libraries: tuple[str, ...]) -> None:
    """Answers until the process `run` has ended or the folder is gone."""

    def goes_on() -> bool:
        return Path(folder).is_dir() and Path(f"/proc/{run}").is_dir()

    most = import_libraries(libraries, goes_on)
    if goes_on():
        answer(f"{folder}/socket", goes_on, lambda connection: attend(connection, partial(begin_stage, most=most)))
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), LIBRARIES if len(sys.argv) < 4 else tuple(sys.argv[3:]))
