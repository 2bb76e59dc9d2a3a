"""Runs stopped at awkward moments: between two jobs, twice, with their terminal, and while a summary is made."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from limits import HUNG_SECONDS, wait_until
from workflow_project import CHECKOUT, ENDS, FAIL, Project, job

# A job that fails and another; `stop` says how the run ends. In `onstart`, because the scheduler exists from then on.
SNAKEFILE = """
import signal

signal.signal(signal.SIGHUP, signal.SIG_DFL)

include: "{rules}/onerror.smk"

def gather_finished():
    print("gathered")

onstart:
    scheduler, select = workflow.scheduler, workflow.scheduler.job_selector

    def stop(*_, **__):
        raise KeyboardInterrupt

    def between_jobs(jobs):
        return stop() if scheduler.failed else select(jobs)

    if config["stop"] == "between":
        scheduler.job_selector = between_jobs
    scheduler._executor.run_uuid = "name-of-the-run"
    if config["stop"] == "twice":
        scheduler.run = scheduler._executor.cancel = stop
    if config["stop"] == "hangup":
        scheduler.run = lambda *_, **__: signal.raise_signal(signal.SIGHUP)

rule all:
    input:
        "first",
        "second",

rule first:
    output:
        "first",
    priority: 1
    shell:
        "exit 1"

rule second:
    output:
        "second",
    shell:
        "touch {{output}}"
"""
SCANCEL = """#!/bin/sh
echo "$@" > cancelled
"""
CANCELLED = "--name=name-of-the-run\n"


@pytest.fixture
def run(tmp_path: Path, snakemakes, monkeypatch):
    """run(stop, *flags): what such a run says."""
    (tmp_path / "Snakefile").write_text(SNAKEFILE.format(rules=CHECKOUT / "workflow/rules"), encoding="utf-8")
    (tmp_path / "scancel").write_text(SCANCEL)
    (tmp_path / "scancel").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    def start(stop: str, *flags: str) -> str:
        command = [*snakemakes.program, "-m", "snakemake", "--cores", "1", "--config", f"stop={stop}", *flags]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=HUNG_SECONDS)
        assert done.returncode != 0
        return done.stdout + done.stderr

    return start


@pytest.mark.parametrize(
    ("stop", "flags", "gathered"),
    [("never", ["--keep-going"], True), ("never", [], True), ("between", ["--keep-going"], False)],
)
def test_what_a_failed_run_finished_is_gathered_unless_it_is_stopped(run, tmp_path, stop, flags, gathered):
    assert ("gathered" in run(stop, *flags)) == gathered
    assert not (tmp_path / "cancelled").exists()  # as nothing ran


def test_a_second_ctrl_c_leaves_no_job_of_the_cluster(run, tmp_path):
    """It comes while the executor cancels, and Snakemake then ends without a further word."""
    assert "gathered" not in run("twice")
    assert (tmp_path / "cancelled").read_text() == CANCELLED


def test_a_closed_terminal_leaves_neither_a_job_nor_the_lock(run, tmp_path):
    assert "Terminating processes on user request" in run("hangup")
    assert (tmp_path / "cancelled").read_text() == CANCELLED
    assert not list((tmp_path / ".snakemake/locks").glob("*"))


def test_ctrl_c_while_the_summary_is_made_ends_in_a_sentence(finished: Project):
    finished.path("nf4/checks.json").unlink()
    (finished / FAIL).write_text("quantharm.checks --cell results/reference/nf4", encoding="utf-8")
    log = finished / "results/logs/summary/reference.log"
    log.unlink()
    background = signal.signal(signal.SIGINT, signal.default_int_handler)  # else ignored, in a background process
    snakemake = finished.start()
    signal.signal(signal.SIGINT, background)
    output = finished / "output.txt"
    wait_until(log.is_file, output.read_text, snakemake)
    snakemake.send_signal(signal.SIGINT)
    assert snakemake.wait(HUNG_SECONDS) == 1
    said = output.read_text(encoding="utf-8")
    assert "reference × nf4: stage checks failed: made to fail" in said
    assert "Interrupted before summary and report were made; run the same command again." in said
    assert "Traceback" not in said
    (finished / FAIL).unlink()
    assert finished.jobs() == {job("nf4", "checks"), *ENDS}
