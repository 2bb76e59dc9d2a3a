"""`python -m …` without the seconds that an interpreter and its imports take: a fork of one that has them already.

    python fork_server.py serve SOCKET module …     imports the modules once, then forks for each call
    python fork_server.py SOCKET -m module flag …   a call: as `python -m module flag …`, down to how it ends

A call has the caller's folder, environment and open files 0 to 2; if a signal ends it, the same signal ends the caller.
What it imports beyond the modules is its own: no call sees what another one did.

Importing torch and transformers takes 2 to 4 seconds of a processor, Snakemake 1, and the tests call them hundreds of
times. What a user's command does from its first line on is tested where interpreters are started: by the run on the
built-in model, and through SLURM.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
from pathlib import Path
from typing import NoReturn


def run(words: list[str]) -> NoReturn:
    """In the fork: what the interpreter does with its command line."""
    for folder in reversed(os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        if folder:
            sys.path.insert(0, folder)
            if (Path(folder) / "sitecustomize.py").is_file():
                sys.orig_argv = [sys.executable, *words]
                runpy.run_path(str(Path(folder) / "sitecustomize.py"))
    sys.path.insert(0, os.getcwd())
    sys.argv = words[1:]
    code = 0
    try:
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def attend(connection: socket.socket) -> NoReturn:
    """In a fork for each call: start it in a fork of its own, and tell its caller how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    text, files, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    call = json.loads(text)
    job = os.fork()
    if job == 0:
        connection.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        os.environ.clear()
        os.environ.update(call["environment"])
        os.chdir(call["folder"])
        run(call["words"])
    for file in files:
        os.close(file)
    connection.sendall(str(os.waitpid(job, 0)[1]).encode())
    os._exit(0)


def serve(address: str, modules: list[str]) -> NoReturn:
    for module in modules:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a fork's collections need not look at it, nor copy it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that attend to a call
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(address + ".new")
        server.listen(64)
        os.rename(address + ".new", address)  # from now on it answers
        while True:
            connection, _ = server.accept()
            if os.fork() == 0:
                server.close()
                attend(connection)
            connection.close()


def call(address: str, words: list[str]) -> NoReturn:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(address)
        told = {"words": words, "folder": os.getcwd(), "environment": dict(os.environ)}
        socket.send_fds(connection, [json.dumps(told).encode()], [0, 1, 2])
        status = int(connection.recv(64))
    if os.WIFSIGNALED(status):
        os.kill(os.getpid(), os.WTERMSIG(status))
    sys.exit(os.WEXITSTATUS(status))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2], sys.argv[3:])
    address, flag, *words = sys.argv[1:]
    assert flag == "-m"
    call(address, [flag, *words])
