"""The interpreter of the stages: what its user's environment may not change."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from workflow_project import CHECKOUT, toy_wheel

VARIABLES = {
    "PYTHONPATH": ":lib::/more:",
    "PYTHONOPTIMIZE": "2",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONSAFEPATH": "",
    "PYTHONIOENCODING": "ascii",
}


def test_a_stage_takes_no_libraries_from_the_runs_folder_and_keeps_assertions(small, monkeypatch):
    """An empty entry of PYTHONPATH, often there by accident, stands for the folder; so does Python's `-m`."""
    environment = small.environment() | VARIABLES
    monkeypatch.setattr(small, "environment", lambda: environment)
    Path(small / "show").write_text("#!/bin/sh\nenv > seen; exit 1\n", encoding="utf-8")
    Path(small / "show").chmod(0o755)
    small.use_python("./show")
    result = small.snakemake("results/texts/builtin.txt")
    assert (small / "seen").exists(), result.output
    seen = dict(line.split("=", 1) for line in (small / "seen").read_text(encoding="utf-8").splitlines() if "=" in line)
    assert {name: seen.get(name) for name in VARIABLES} == {
        "PYTHONPATH": f"{small / 'workflow'}:lib:/more",
        "PYTHONOPTIMIZE": None,
        "PYTHONDONTWRITEBYTECODE": None,
        "PYTHONSAFEPATH": "1",
        "PYTHONIOENCODING": "utf-8",
    }


def test_what_lies_in_pythonpath_is_installed_all_the_same(tmp_path):
    """Else an environment would lack what is pinned, or hold another version, once the variable is set differently."""
    wheel = toy_wheel(tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "of the user")
    (tmp_path / "pins.txt").write_text("toy\n", encoding="utf-8")
    python, folder = tmp_path / "python", tmp_path / "environment"  # makes one without a pip of its own, in no time
    base = f"{sys.base_prefix}/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
    python.write_text(f'#!/bin/sh\nexec {base} "$1" "$2" --without-pip --system-site-packages "$4"\n', encoding="utf-8")
    python.chmod(0o755)
    variables = {"PYTHONPATH": str(tmp_path / "of the user"), "PIP_FIND_LINKS": str(tmp_path), "PIP_NO_INDEX": "1"}
    command = ["sh", str(CHECKOUT / "envs" / "build.sh"), str(python), str(folder), str(tmp_path / "pins.txt")]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in folder.rglob("toy.py")] == ["toy.py"]
