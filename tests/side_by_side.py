"""All tests: each suite by pytest in its environment, side by side, since none keeps two cores busy.

    python tests/side_by_side.py [suite …]

A line is shown as each file of tests is done, and what else a suite says when it ends; at last a table of the times.
TEST_TIMES in the environment names a file to which the table's lines are added. The exit code is 1 if a suite failed.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EVALUATION = os.environ.get("QUANTHARM_PYTHON") or ROOT / ".venv-evaluation/bin/python"
SUITES = {  # the interpreter of each; this one is the workflow environment's
    "workflow": sys.executable,
    "unit": EVALUATION,
    "slurm": sys.executable,
    "report": EVALUATION,
}
AT_ONCE = 3  # each waits for other programs much of its time
FREE_GB = 4  # of the disk, which the suites together fill and give back
SHOWING = threading.Lock()


@dataclass(frozen=True)
class Outcome:
    suite: str
    code: int
    seconds: float
    summary: str

    def __str__(self) -> str:
        return f"{self.suite:10}{self.seconds:7.0f} s  {self.summary}"


def run(suite: str) -> Outcome:
    command = [SUITES[suite], "-m", "pytest", "--color=no", "--durations=12", "--durations-min=5", f"tests/{suite}"]
    begin = time.monotonic()
    held = []
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_WAIT_POLICY": "passive", "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as tests:
        for line in tests.stdout:
            if line.startswith("tests/") and "%]" in line:
                with SHOWING:
                    print(line, end="", flush=True)
            else:
                held.append(line)
    with SHOWING:
        print("".join(held), end="", flush=True)
    totals = [match[1] for line in held if (match := re.fullmatch(r"=+ (.+) in [\d.]+s.* =+\n", line))]
    summary = totals[-1] if totals else f"ended with exit code {tests.returncode}"
    return Outcome(suite, tests.returncode, time.monotonic() - begin, summary)


def main() -> None:
    chosen = sys.argv[1:] or list(SUITES)
    if unknown := set(chosen) - set(SUITES):
        sys.exit(f"error: no such suite: {', '.join(sorted(unknown))}; there are {', '.join(SUITES)}")
    folder = tempfile.gettempdir()
    if (free := shutil.disk_usage(folder).free / 1e9) < FREE_GB:
        sys.exit(f"error: the tests need {FREE_GB} GB in {folder} and {free:.1f} are free; free some or set TMPDIR")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        outcomes = list(pool.map(run, chosen))
    table = "".join(f"{outcome}\n" for outcome in outcomes)
    print(f"\n{table}", end="")
    if "TEST_TIMES" in os.environ:
        with open(os.environ["TEST_TIMES"], "a", encoding="utf-8") as stream:
            stream.write(table)
    sys.exit(any(outcome.code for outcome in outcomes))


if __name__ == "__main__":
    main()
