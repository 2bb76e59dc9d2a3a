"""Interpreters with their libraries imported already, for the length of a `with` block."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from limits import HUNG_SECONDS, wait_until

SCRIPT = Path(__file__).with_name("fork_server.py")


class ForkServer:
    """`with ForkServer(modules) as server`: server.program is called as an interpreter is."""

    def __init__(
        self, modules: list[str], python: str = sys.executable, environment: dict[str, str] | None = None
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="quantharm-forks-", dir="/tmp"))  # short: holds a socket
        self.socket = self.folder / "socket"
        self.program = [python, "-I", "-S", str(SCRIPT), str(self.socket)]
        self.command = [python, str(SCRIPT), "serve", str(self.socket), *modules]
        self.environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        self.environment |= environment or {}

    @property
    def shell_words(self) -> str:
        return shlex.join(self.program)

    def __enter__(self) -> "ForkServer":
        log = self.folder / "log"
        with log.open("w") as said:  # libraries tell as they are imported what they do not have
            self.process = subprocess.Popen(
                self.command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        wait_until(self.socket.exists, lambda: f"the fork server does not answer\n{log.read_text()}", self.process)
        return self

    def __exit__(self, *_: object) -> None:
        """It ends, and whatever it still runs."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(HUNG_SECONDS)
        shutil.rmtree(self.folder, ignore_errors=True)
