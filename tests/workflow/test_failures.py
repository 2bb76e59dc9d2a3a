"""Stages that fail and jobs that are killed: nothing that looks finished is left, and the next run goes on."""

import json
import os
import signal
import subprocess
import time

import psutil
from workflow_project import ENDS, FAIL, job, with_followers

FIGURES = ("perplexity", "kl_nats_mean", "top1_agreement", "weight_bytes", "bits_per_weight", "succeeded", "correct")
PATIENCE = 60  # seconds


def figures(project, method: str) -> dict:
    """What does not depend on the clock."""
    row = next(row for row in project.read("summary.json")["cells"] if row["method"] == method)
    return {key: row[key] for key in FIGURES}


def start(project, *targets: str) -> subprocess.Popen:
    with open(project / "output.txt", "w", encoding="utf-8") as output:
        return subprocess.Popen(
            project.command(*targets, "--quiet", "host", "reason"),
            cwd=project.folder,
            env=project.environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def stage_process(snakemake: subprocess.Popen, stage: str, not_this: int | None = None) -> psutil.Process:
    """The process of a stage among the descendants of a running Snakemake."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for process in psutil.Process(snakemake.pid).children(recursive=True):
            try:
                arguments = process.cmdline()
                is_stage = arguments[1:3] == ["-m", f"quantharm.{stage}"] and "/bin/sh" not in arguments[0]
                if is_stage and process.pid != not_this:
                    return process
            except psutil.Error:  # it ended meanwhile
                continue
        assert snakemake.poll() is None, "Snakemake ended before its stage began"
        time.sleep(0.02)
    raise AssertionError(f"no process of the stage {stage} within {PATIENCE} s")


def test_a_failed_stage_runs_again_alone(finished):
    """It ends in its own sentence, hurts no other cell, and the next run does it and what depends on it."""
    wanted = figures(finished, "nf4")
    finished.path("nf4/divergence.json").unlink()
    (finished / FAIL).write_text("quantharm.divergence --quantization results/reference/nf4", encoding="utf-8")
    failed = finished.snakemake("--quiet", "host", "reason")
    assert failed.code != 0
    assert "Traceback" not in failed.output
    assert "was killed" not in failed.output
    assert "results/logs/divergence/reference/nf4.log" in failed.output
    assert "made to fail" in (finished / "results/logs/divergence/reference/nf4.log").read_text(encoding="utf-8")
    assert not finished.path("nf4/divergence.json").exists()

    (finished / FAIL).unlink()
    assert finished.jobs() == {job("nf4", stage) for stage in ("divergence", "integrity", "checks")} | ENDS
    finished.run()
    assert figures(finished, "nf4") == wanted
    assert finished.jobs() == set()


def test_a_damaged_result_is_named_and_its_advice_works(finished):
    """checks reads a damaged perplexity.json: it says so, and deleting the file as it says repairs the run."""
    finished.path("nf4/perplexity.json").write_text('{"protocol"', encoding="utf-8")
    finished.path("nf4/checks.json").unlink()
    failed = finished.snakemake("results/reference/nf4/checks.json", "--quiet", "host", "reason")
    assert failed.code != 0
    log = (finished / "results/logs/checks/reference/nf4.log").read_text(encoding="utf-8")
    assert "error: results/reference/nf4/perplexity.json is damaged" in log
    assert "Traceback" not in log
    finished.path("nf4/perplexity.json").unlink()
    assert finished.jobs() == {job("nf4", "perplexity"), job("nf4", "checks")} | ENDS


def test_a_killed_quantization_is_retried_and_gives_the_same_checkpoint(finished):
    wanted = finished.read("nf4/quantization.json")
    finished.path("nf4/quantization.json").unlink()
    snakemake = start(finished, "results/reference/nf4/quantization.json")
    try:
        process = stage_process(snakemake, "quantize")
        while not list(finished.path("nf4").glob(".checkpoint.*.part")):  # half-way: its folder is being filled
            assert process.is_running()
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        stage_process(snakemake, "quantize", not_this=process.pid)
        assert not finished.path("nf4/quantization.json").exists()
        assert not finished.path("nf4/checkpoint").exists()
        assert snakemake.wait(PATIENCE * 2) == 0, (finished / "output.txt").read_text(encoding="utf-8")[-3000:]
    finally:
        snakemake.kill()
    again = finished.read("nf4/quantization.json")
    assert [f["sha256"] for f in again["weight_files"]] == [f["sha256"] for f in wanted["weight_files"]]
    assert again["quantized_modules"] == wanted["quantized_modules"]
    assert not list((finished / "results").rglob("*.part"))


def test_a_job_killed_twice_fails_and_the_next_run_completes_it(finished):
    wanted = finished.read("nf4/generation.json")
    target = "results/reference/nf4/generation.json"
    (finished / target).unlink()
    snakemake = start(finished, target)
    try:
        killed = None
        for _ in range(2):  # the rule is retried once
            process = stage_process(snakemake, "generation", not_this=killed)
            time.sleep(1.0)
            killed = process.pid
            os.kill(killed, signal.SIGKILL)
        assert snakemake.wait(PATIENCE) != 0
    finally:
        snakemake.kill()
    told = (finished / "output.txt").read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("error: this job was killed (signal 9), most often because") for line in told) == 2
    assert not list(finished.path("nf4").glob("generation.*"))
    assert finished.jobs() == with_followers({job("nf4", "generation")})
    finished.run(target)
    again = finished.read("nf4/generation.json")
    for key in ("prompts", "succeeded", "new_tokens_mean", "suite_sha256", "correct"):
        assert again[key] == wanted[key]
    log = (finished / "results/logs/generation/reference/nf4.log").read_text(encoding="utf-8")
    assert "3 of 3 prompts succeeded" in log


def test_a_failed_check_fails_its_job_and_names_the_check(finished):
    """A record that says what cannot be: 4 bits a weight that are 8."""
    path = finished.path("nf4/quantization.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    del record["record_sha256"]  # which would give the change away before any check
    path.write_text(json.dumps(record | {"bits_per_weight": 8.4}), encoding="utf-8")
    os.utime(path, ns=(0, finished.path("nf4/checkpoint").stat().st_mtime_ns))  # so that only the checks run again
    finished.path("nf4/checks.json").unlink()
    failed = finished.snakemake("results/reference/nf4/checks.json", "--quiet", "host", "reason")
    assert failed.code != 0
    assert not finished.path("nf4/checks.json").exists()
    log = (finished / "results/logs/checks/reference/nf4.log").read_text(encoding="utf-8")
    assert "error: reference × nf4 failed bits_per_weight (" in log
    assert "Traceback" not in log


def test_an_environment_that_cannot_be_built_says_what_to_do(shipped, monkeypatch):
    monkeypatch.setenv("PIP_RETRIES", "0")
    nothing_listens = "http://127.0.0.1:9"
    (shipped / "envs/evaluation.txt").write_text(f"--index-url {nothing_listens}\nno-such-package\n")
    run = shipped.snakemake(".venv-evaluation/installed.txt")
    assert run.code != 0
    log = (shipped / "results/logs/evaluation_environment.log").read_text()
    assert "no-such-package" in log
    assert log.splitlines()[-1].startswith("error: the environment of the model stages could not be built from envs/")
    assert "python: in the config" in log
    assert not (shipped / ".venv-evaluation/installed.txt").exists()
