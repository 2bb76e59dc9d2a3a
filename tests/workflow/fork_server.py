"""`python -m …` without the seconds that an interpreter and its imports take: a fork of one that has them already.

    python fork_server.py serve SOCKET module …     imports the modules once, then forks for each call
    python fork_server.py SOCKET -m module flag …   a call: as `python -m module flag …`, down to how it ends

Call and answer are those of the package's warm starts. What a call imports beyond the modules is its own, the package
too: no call sees what another one did.

Importing torch and transformers takes 2 to 4 seconds of a processor, Snakemake 1, and the tests call them hundreds of
times. What a user's command does from its first line on is tested where interpreters are started: by the run on the
built-in model, and through SLURM.
"""

import importlib.util
import os
import runpy
import socket
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

COMMON = Path(__file__).resolve().parents[2] / "workflow" / "quantharm" / "common"


def load(name: str) -> ModuleType:
    """A module of the package by its file, so that a fork does not hold the package already."""
    specification = importlib.util.spec_from_file_location(f"tests_{name}", COMMON / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def serve(address: str, modules: list[str]) -> NoReturn:
    server = load("fork_server")
    for module in modules:
        importlib.import_module(module)

    def begin(call: dict[str, Any]) -> NoReturn:
        """In the fork: what the interpreter does with its command line."""
        for folder in reversed(os.environ.get("PYTHONPATH", "").split(os.pathsep)):
            if folder:
                sys.path.insert(0, folder)
                if (Path(folder) / "sitecustomize.py").is_file():
                    sys.orig_argv = [sys.executable, "-m", *call["words"]]
                    runpy.run_path(str(Path(folder) / "sitecustomize.py"))
        sys.path.insert(0, os.getcwd())
        server.run_module(call["words"])

    # A job stays in the server's group, by which a test ends whatever still runs.
    server.answer(address, lambda: True, lambda connection: server.attend(connection, begin, os.kill))
    raise AssertionError("it answers until it is killed")


def call(address: str, words: list[str]) -> NoReturn:
    client = load("warm_start")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(address)
        client.call(connection, words, os.environ)
        client.end_as(connection)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2], sys.argv[3:])
    socket_address, flag, *command = sys.argv[1:]
    assert flag == "-m"
    call(socket_address, command)
