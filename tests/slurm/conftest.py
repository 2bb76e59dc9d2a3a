"""Fixtures of the SLURM tests: the cluster, one whole run through it, and one beside it without."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "workflow"))

from cut_model import cut_to_two_layers
from forks import ForkServer
from limits import HUNG_SECONDS
from single_node import SingleNode, missing
from workflow_project import (
    FAIL,
    MODEL_LIBRARIES,
    PYTHON,
    STAGE_ENVIRONMENT,
    Project,
    Result,
    evaluation_python,
)

METHODS = ("baseline", "int8", "nf4")  # what a fourth one would show of SLURM is what these show
HOLD = Path("hold")  # as FAIL, but the stages that it matches wait until it is gone
NEEDS_MB = Path("needs_mb")  # a stage in a SLURM job with less is killed, as the kernel kills one that uses too much
CALLS = Path("calls.txt")  # a line a stage: SLURM job or `login`, `offline` or `online`, its GPUs, the command
# The evaluation interpreter of a site, with what the tests need. In SLURM's jobs it has no network at all, where this
# user may make a network namespace.
WRAPPER = """#!/bin/sh
matches() {{ [ -f "$1" ] && case "$all" in *"$(cat "$1")"*) true ;; *) false ;; esac; }}
all="$*"
network=online alone=
if [ -n "$SLURM_JOB_ID" ] && unshare --net true 2> /dev/null; then network=offline alone="unshare --net"; fi
echo "${{SLURM_JOB_ID:-login}} $network ${{CUDA_VISIBLE_DEVICES:-none}} $all" >> {calls}
if matches {fail}; then echo "error: made to fail" >&2; exit 1; fi
while matches {hold}; do sleep 0.2; done
has_mb() {{ scontrol show job "$SLURM_JOB_ID" | sed -n 's/.*MinMemoryNode=\\([0-9]*\\)M.*/\\1/p'; }}
if [ -f {needs_mb} ] && [ -n "$SLURM_JOB_ID" ] && [ "$(has_mb)" -lt "$(cat {needs_mb})" ]; then kill -9 $$; fi
exec $alone {python} "$@"
"""


OFTEN = str(Path(__file__).with_name("snakemake_often.py"))


class SlurmProject(Project):
    """A project that runs through the test SLURM with the profile; `plain`: by the very command that a user types."""

    def __init__(self, folder: Path, slurm: SingleNode, plain: bool = False):
        super().__init__(folder)
        self.slurm = slurm
        self.program = ["-m", "snakemake"] if plain else [OFTEN]

    def command(self, *arguments: str, cores: int = 0) -> list[str]:
        faster = ("--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "5")
        return [sys.executable, *self.program, "--profile", "workflow/profiles/slurm", *faster, *arguments]

    def environment(self) -> dict[str, str]:
        return super().environment() | self.slurm.environment

    def use_python(self, python: str) -> None:
        wrapper = self / PYTHON
        wrapper.write_text(
            WRAPPER.format(calls=CALLS, fail=FAIL, hold=HOLD, needs_mb=NEEDS_MB, python=python), encoding="utf-8"
        )
        wrapper.chmod(0o755)

    def calls(self) -> list[str]:
        return (self / CALLS).read_text(encoding="utf-8").splitlines() if (self / CALLS).is_file() else []

    def start(self, *arguments: str) -> "Started":
        return Started(self, arguments)


class Started:
    """Snakemake in the background."""

    running: ClassVar[list[subprocess.Popen]] = []

    def __init__(self, project: SlurmProject, arguments: tuple[str, ...]):
        self.project = project
        self.output = open(project.folder.parent / "output.txt", "w+", encoding="utf-8")
        self.process = subprocess.Popen(
            project.command(*arguments),
            cwd=project.folder,
            env=project.environment(),
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.running.append(self.process)

    def interrupt(self) -> None:
        """What Ctrl-C sends: SIGINT to the whole process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def wait(self) -> Result:
        try:
            code = self.process.wait(HUNG_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
            raise AssertionError(f"still running after {HUNG_SECONDS} s:\n{self.text()[-4000:]}") from None
        return Result(code, self.text())

    def text(self) -> str:
        self.output.flush()
        return Path(self.output.name).read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def slurm() -> Iterator[SingleNode]:
    reason = missing()
    if reason:
        pytest.skip(reason)
    handlers = {
        signal.SIGTERM: lambda *_: sys.exit("terminated"),  # a terminated test run stops its daemons, too
        # A test run in the background of a script ignores Ctrl-C, and so would the Snakemake that it starts.
        signal.SIGINT: signal.default_int_handler,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    with SingleNode() as node:
        yield node
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def both_runs(slurm, tmp_path_factory) -> tuple[SlurmProject, Result, Project, Result]:
    """The default run from one state of the sources: through SLURM, and beside it on this machine."""
    python = evaluation_python()
    local = Project.fresh(tmp_path_factory.mktemp("local") / "project")
    local.shorten()
    local.edit("evaluate/methods", list(METHODS))
    cut_to_two_layers(local / "data/reference-model")
    local.edit("device", "auto")  # `cpu` would ask for no GPU
    submitted = SlurmProject(tmp_path_factory.mktemp("submitted") / "project", slurm, plain=True)
    local.copy(submitted.folder)
    submitted.use_python(python)
    running = submitted.start()
    with ForkServer(MODEL_LIBRARIES, python, STAGE_ENVIRONMENT) as stages:
        local.use_python(stages.shell_words)
        beside = local.snakemake("--quiet", "host", "reason", cores=1)
    return submitted, running.wait(), local, beside


@pytest.fixture(scope="session")
def submitted(both_runs) -> SlurmProject:
    """The finished run through SLURM; do not change it, take `finished`."""
    assert both_runs[1].code == 0, both_runs[1].output[-6000:]
    return both_runs[0]


@pytest.fixture
def finished(submitted, tmp_path) -> SlurmProject:
    """A copy of the finished run, free to be changed."""
    submitted.copy(tmp_path / "project")
    project = SlurmProject(tmp_path / "project", submitted.slurm)
    (project / CALLS).unlink()
    return project


@pytest.fixture(autouse=True)
def _no_jobs_left(request) -> Iterator[None]:
    """A test that fails leaves no Snakemake, no job and no node down for the next one."""
    yield
    while Started.running:
        process = Started.running.pop()
        if process.poll() is None:
            process.kill()
            process.wait()
    if "slurm" in request.fixturenames:
        node = request.getfixturevalue("slurm")
        node.cancel_all()
        if re.match("DOWN|DRAIN", node.node_state()):
            node.set_node("RESUME")
