"""Loaded by every Python of a run before its program: a stage that has written half of a file dies there, or stops.

It does so when it is about to give its n-th file its final name. QUANTHARM_HALF_WAY says {"nth": {stage: n},
"then": "die" or "stop", "attempts": so many times each command}. A stage that stops waits for its SIGKILL, and says so
in `half-way/<process id>`. At the attempts after the first it does so at its start.
"""

import json
import os
import signal
from pathlib import Path
from sys import orig_argv as words

if words[1:2] == ["-m"] and words[2].startswith("quantharm."):
    plan = json.loads(os.environ["QUANTHARM_HALF_WAY"])
    command, log = " ".join(words[2:]), Path("half-way.txt")
    attempts = log.read_text().splitlines().count(command) if log.is_file() else 0
    nth = plan["nth"].get(words[2].removeprefix("quantharm."), 1)
    seen = 0
    replace = os.replace

    def interrupt() -> None:
        with log.open("a") as stream:
            stream.write(command + "\n")
        if plan["then"] == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        Path("half-way").mkdir(exist_ok=True)
        Path("half-way", str(os.getpid())).touch()
        while True:
            signal.pause()

    def half(source, target, **keywords):
        global seen
        if "results/" in str(target) and str(source).endswith(".part"):
            seen += 1
            if seen == nth:
                if os.path.isfile(source):
                    os.truncate(source, os.path.getsize(source) // 2)
                interrupt()
        return replace(source, target, **keywords)

    if attempts < plan["attempts"]:
        if attempts:
            interrupt()
        os.replace = half
