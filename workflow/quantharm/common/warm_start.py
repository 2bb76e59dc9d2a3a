"""A stage without the seconds that its imports take: a fork of an interpreter that has torch and transformers already.

`python -m quantharm.<stage>` comes here first where the workflow asks for it (`warm_start: true`). The first job starts
the server beside itself; each later one hands its command line, folder, environment and open files over, waits, and
ends as the fork did: with its exit code, or by the signal that killed it. The fork imports this package anew, so an
edited module counts. It dies with its job, and the server with the run.

No GPU may be touched before a fork, or the fork cannot use it: each library is tried in a fork of its own first, and
left out where importing it starts CUDA. What only some jobs import (bitsandbytes, gptqmodel) is left to them.
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
import subprocess
import sys
import threading
from pathlib import Path
from typing import NoReturn

VARIABLE = "QUANTHARM_WARM_START"  # FOLDER:PID, the folder of the socket and the process of the run
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
ONLINE = (
    "quantharm.fetch",
    "quantharm.fetch_text",
    "quantharm.fetch_tasks",
)  # the libraries here have been told to stay offline
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CUDA_NOT_STARTED = 3  # CUDA_ERROR_NOT_INITIALIZED
SECONDS_BETWEEN_LOOKS = 1.0


def hand_over() -> None:
    """In a stage's first moment: let a fork do it and end as it ends; returns where there is none to do it yet."""
    folder, _, run = os.environ[VARIABLE].rpartition(":")
    words = sys.orig_argv[sys.orig_argv.index("-m") + 1 :]
    if not Path(folder).is_dir() or not is_ancestor(int(run)):
        return
    if words[0] in ONLINE:
        start_server(folder, run)  # for those that follow
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        try:
            connection.connect(f"{folder}/socket")
            told = {"words": words, "folder": os.getcwd(), "environment": dict(os.environ)}
            socket.send_fds(connection, [json.dumps(told).encode()], [0, 1, 2])
        except OSError:  # not there yet
            start_server(folder, run)
            return
        end_as(connection)


def is_ancestor(process: int) -> bool:
    """Whether this process descends from another one; not so for a job that a cluster started elsewhere."""
    child = os.getpid()
    while child > 1:
        if child == process:
            return True
        try:
            child = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return False


def start_server(folder: str, run: str) -> None:
    """Beside this job, once a run."""
    try:
        (Path(folder) / "starting").touch(exist_ok=False)
    except OSError:
        return
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with open(f"{folder}/log", "w") as log:
        subprocess.Popen(
            [sys.executable, "-P", __file__, folder, run],  # -P: no module here may stand for one of Python's own
            env={key: value for key, value in environment.items() if key not in ("PYTHONPATH", VARIABLE)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def end_as(connection: socket.socket) -> NoReturn:
    """Wait for the fork, hand signals on to it, and end as it ended."""
    for number in FORWARDED:
        signal.signal(number, lambda received, _: connection.send(str(received).encode()))
    answer = connection.recv(64)
    if not answer:
        sys.exit("error: the interpreter that this job was a fork of has ended; run the same command again")
    status = int(answer)
    if os.WIFSIGNALED(status):
        with contextlib.suppress(OSError):  # SIGKILL has no other meaning
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status))


def cuda_has_started() -> bool:
    """Whether this process has initialised CUDA's driver, after which its forks cannot use a GPU."""
    try:
        context = ctypes.c_void_p()
        return ctypes.CDLL("libcuda.so.1").cuCtxGetCurrent(ctypes.byref(context)) != CUDA_NOT_STARTED
    except OSError:  # no driver, no GPU
        return False


def can_be_imported(library: str) -> bool:
    """Tried in a fork: whether a library is there and leaves CUDA alone while it is imported."""
    trial = os.fork()
    if trial == 0:
        code = 1
        with contextlib.suppress(BaseException):
            importlib.import_module(library)
            code = int(cuda_has_started())
        os._exit(code)
    return os.waitpid(trial, 0)[1] == 0


def serve(folder: str, run: int, libraries: tuple[str, ...]) -> None:
    """Until the run has ended: a fork for each call."""
    for library in libraries:
        imported = can_be_imported(library)
        print(f"{library}: {'imported' if imported else 'left out'}", flush=True)
        if imported:
            importlib.import_module(library)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that attend to a call
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(f"{folder}/new")
        server.listen(64)
        os.rename(f"{folder}/new", f"{folder}/socket")  # from now on it answers
        while Path(folder).is_dir() and Path(f"/proc/{run}").is_dir():
            if select.select([server], [], [], SECONDS_BETWEEN_LOOKS)[0]:
                connection, _ = server.accept()
                if os.fork() == 0:
                    server.close()
                    attend(connection)
                connection.close()
    shutil.rmtree(folder, ignore_errors=True)


def attend(connection: socket.socket) -> NoReturn:
    """Start a job in a fork of its own, hand signals on to it, kill it if its caller is gone, tell how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    text, files, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    told = json.loads(text)
    job = os.fork()
    if job == 0:
        connection.close()
        become(told, files)
    for file in files:
        os.close(file)
    ended = os.pidfd_open(job)
    asked = connection.fileno()
    while ended not in (ready := select.select([asked, ended], [], [])[0]):
        if asked in ready:
            signal_number = connection.recv(64)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job, int(signal_number) if signal_number else signal.SIGKILL)
    status = os.waitpid(job, 0)[1]
    with contextlib.suppress(OSError):
        connection.sendall(str(status).encode())
    os._exit(0)


def become(told: dict, files: list[int]) -> NoReturn:
    """In the fork: the process that the caller would have been."""
    os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update({key: value for key, value in told["environment"].items() if key != VARIABLE})
    os.chdir(told["folder"])
    if "torch" in sys.modules:  # which read its number of threads when the server started
        sys.modules["torch"].set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    sys.path[:0] = [told["folder"], *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]  # as `-m` has it
    sys.orig_argv = [sys.executable, "-m", *told["words"]]
    sys.argv = ["-m", *told["words"][1:]]
    code = 0
    try:
        runpy.run_module(told["words"][0], run_name="__main__", alter_sys=True)
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


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), LIBRARIES if len(sys.argv) < 4 else tuple(sys.argv[3:]))
