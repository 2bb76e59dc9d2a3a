"""A stage without the seconds that its imports take: a fork of an interpreter that has torch and transformers already.

`python -m quantharm.<stage>` comes here first where the workflow asks for it (`warm_start: true`). The first job starts
the server (fork_server.py) beside itself; each later one hands its command line, folder, environment and open files
over, waits, and ends as the fork did: with its exit code, or by the signal that killed it. The fork dies with its job,
and the server with the run.
"""

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

VARIABLE = "QUANTHARM_WARM_START"  # FOLDER:PID, the folder of the socket and the process of the run
PATH_VARIABLE = "QUANTHARM_WARM_PATH"  # PYTHONPATH of the run, from which the server takes its libraries, too
FORKED = "QUANTHARM_FORKED"  # set in a fork, which its record says
PACKAGE = os.path.abspath(Path(__file__).parents[2])
SERVER = Path(__file__).with_name("fork_server.py")
# Stages that use the network; a fork of the server's libraries could not: those have been told to stay offline.
ONLINE = ("quantharm.fetch", "quantharm.fetch_text", "quantharm.fetch_tasks")
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def hand_over() -> None:
    """Called first in a stage: a fork runs it, and this process ends as the fork ends. Returns without a server.

    A job that has folders of its own in its PYTHONPATH starts as ever: the server's libraries were imported without
    them, may be other versions, and remember what was not there.
    """
    folder, _, run = os.environ[VARIABLE].rpartition(":")
    words = sys.orig_argv[sys.orig_argv.index("-m") + 1 :]
    if not Path(folder).is_dir() or not is_ancestor(int(run)):
        return
    if libraries(os.environ.get("PYTHONPATH", "")) != libraries(os.environ.get(PATH_VARIABLE, "")):
        return
    if words[0] in ONLINE:
        start_server(folder, run)  # for those that follow
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        try:
            connection.connect(f"{folder}/socket")
            environment = {key: value for key, value in os.environ.items() if key != VARIABLE}
            call(connection, words, environment | {FORKED: "1"})
        except OSError:  # not there yet
            start_server(folder, run)
            return
        end_as(connection)


def libraries(path: str) -> list[str]:
    """The folders of a PYTHONPATH but this package's, which a fork imports anew."""
    return [folder for folder in path.split(os.pathsep) if folder and os.path.abspath(folder) != PACKAGE]


def is_ancestor(process: int) -> bool:
    """Whether a process is an ancestor of this one; it is none of a job that a cluster started elsewhere."""
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
    """Starts the server beside this job, once a run."""
    import subprocess

    try:
        (Path(folder) / "starting").touch(exist_ok=False)
    except OSError:
        return
    path = os.pathsep.join(libraries(os.environ.get(PATH_VARIABLE, "")))
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": path}
    flags = sys.orig_argv[1 : sys.orig_argv.index("-m")]  # such as -s, in a program that `python:` names
    with open(f"{folder}/log", "w") as log:
        subprocess.Popen(
            # -P: no module beside the server may stand for one of Python's own
            [sys.executable, *flags, "-P", str(SERVER), folder, run],
            env={key: value for key, value in environment.items() if key != VARIABLE},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def call(connection: socket.socket, words: list[str], environment: Mapping[str, str]) -> None:
    """Asks a fork server for `python -m` with these words, in this process's folder and open files."""
    asked = {"words": words, "folder": os.getcwd(), "environment": dict(environment), "path": sys.path}
    socket.send_fds(connection, [json.dumps(asked).encode()], [0, 1, 2])


def end_as(connection: socket.socket) -> NoReturn:
    """Waits for the fork, hands signals on to it, and ends as it ended."""
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
