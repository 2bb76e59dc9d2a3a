"""Stages that fail and jobs that are killed: nothing that looks finished is left, and the next run goes on."""

import json
import os
import signal
import subprocess

from limits import HUNG_SECONDS, end, wait_until
from workflow_project import ENDS, FAIL, half_way, job, with_followers

FIGURES = ("perplexity", "kl_nats_mean", "top1_agreement", "weight_bytes", "bits_per_weight", "succeeded", "correct")


def figures(project, method: str) -> dict:
    """What does not depend on the clock."""
    row = next(row for row in project.read("summary.json")["cells"] if row["method"] == method)
    return {key: row[key] for key in FIGURES}


def kill_half_way(project, snakemake: subprocess.Popen, killed: tuple[int, ...] = ()) -> int:
    """SIGKILL to the stage of a running Snakemake that has stopped half-way, of which there is one; its number."""

    def others() -> list[int]:
        return [int(path.name) for path in (project / "half-way").glob("*") if int(path.name) not in killed]

    (process,) = wait_until(others, "no stage has stopped half-way", snakemake)
    os.kill(process, signal.SIGKILL)
    return process


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
    """divergence reads a damaged perplexity.json: it says so, and deleting the file as it says repairs the run."""
    finished.path("nf4/perplexity.json").write_text('{"protocol"', encoding="utf-8")
    finished.path("nf4/checks.json").unlink()
    failed = finished.snakemake("results/reference/nf4/checks.json", "--quiet", "host", "reason")
    assert failed.code != 0
    log = (finished / "results/logs/divergence/reference/nf4.log").read_text(encoding="utf-8")
    assert "error: results/reference/nf4/perplexity.json is damaged" in log
    assert "Traceback" not in log
    finished.path("nf4/perplexity.json").unlink()
    of_it = ("perplexity", "divergence", "integrity", "checks")  # divergence repeats its figures of the text
    assert finished.jobs() == {job("nf4", stage) for stage in of_it} | ENDS


def test_a_killed_quantization_is_retried_and_gives_the_same_checkpoint(finished, monkeypatch):
    wanted = finished.read("nf4/quantization.json")
    finished.path("nf4/quantization.json").unlink()
    half_way(finished, monkeypatch, then="stop", attempts=1, nth={})
    snakemake = finished.start("results/reference/nf4/quantization.json")
    try:
        wait_until(lambda: list((finished / "half-way").glob("*")), "quantize has not stopped half-way", snakemake)
        assert list(finished.path("nf4").glob(".checkpoint.*.part"))  # its folder is filled
        assert not finished.path("nf4/quantization.json").exists()
        assert not finished.path("nf4/checkpoint").exists()
        kill_half_way(finished, snakemake)
        assert snakemake.wait(HUNG_SECONDS) == 0, (finished / "output.txt").read_text(encoding="utf-8")[-3000:]
    finally:
        end(snakemake)
    assert len((finished / "half-way.txt").read_text(encoding="utf-8").splitlines()) == 1
    again = finished.read("nf4/quantization.json")
    assert [f["sha256"] for f in again["weight_files"]] == [f["sha256"] for f in wanted["weight_files"]]
    assert again["quantized_modules"] == wanted["quantized_modules"]
    assert not list((finished / "results").rglob("*.part"))


def test_a_job_killed_twice_fails_and_the_next_run_completes_it(finished, monkeypatch):
    wanted = finished.read("nf4/generation.json")
    target = "results/reference/nf4/generation.json"
    (finished / target).unlink()
    with monkeypatch.context() as patched:
        half_way(finished, patched, then="stop", attempts=2, nth={"generation": 2})
        snakemake = finished.start(target)
    try:
        first = kill_half_way(finished, snakemake)
        kill_half_way(finished, snakemake, killed=(first,))  # the rule is retried once
        assert snakemake.wait(HUNG_SECONDS) != 0
    finally:
        end(snakemake)
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
