"""The stages that read finished results, as a user starts them: by their command lines."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_module(module: str, *flags: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "workflow"), "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-m", f"quantharm.{module}", *flags]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)


def run_report(*flags: str) -> subprocess.CompletedProcess:
    return run_module("report", *flags)


def outputs(folder: Path) -> list[str]:
    return [
        f"--html={folder / 'report.html'}",
        f"--markdown={folder / 'EVALUATION_SUMMARY.md'}",
        f"--figures={folder / 'figures'}",
        f"--tables={folder / 'tables'}",
    ]
