"""SIGKILL in every stage while it writes, two Snakemakes in one folder, an environment that was half built."""

import hashlib
import json
import os
import re
import signal

import psutil
import pytest
from limits import HUNG_SECONDS, end, wait_until
from workflow_project import (
    ALL_MODELS,
    ALL_REPORT,
    CHECKOUT,
    FETCH,
    LOGITS,
    REPORT,
    SUMMARY,
    TEXT,
    Project,
    evaluation_python,
    half_way,
    job,
)

# The file at which a stage is killed: the second where there are more, so that one has its final name already.
NTH = {
    "fetch_text": 2,
    "quantize": 2,
    "generation": 2,
    "logits": 2,
    "perplexity": 2,
    "divergence": 2,
    "summary": 2,
    "report": 5,
}
RECORDS = "results/reference"
# Jobs that do not depend on each other, with the targets by which they alone are asked for.
BATCHES = {
    "the report over all models, and their summary": {
        ALL_REPORT: "results/report.html",
        ALL_MODELS: "results/summary.csv",
    },
    "a report": {REPORT: f"{RECORDS}/report.html"},
    "a summary": {SUMMARY: f"{RECORDS}/summary.json"},
    "model stages": {
        job("int8", "quantize"): f"{RECORDS}/int8/quantization.json",
        job("nf4", "generation"): f"{RECORDS}/nf4/generation.json",
        job("awq", "perplexity"): f"{RECORDS}/awq/perplexity.json",
        job("nf4", "divergence"): f"{RECORDS}/nf4/divergence.json",
        job("baseline", "checks"): f"{RECORDS}/baseline/checks.json",
        job("baseline", "integrity"): f"{RECORDS}/baseline/integrity.json",
    },
    "the store": {LOGITS: f"{RECORDS}/baseline/logits.json"},
    "what is fetched": {FETCH: f"{RECORDS}/source.json", TEXT: "results/texts/builtin.json"},
}
MODEL_BATCHES = [BATCHES["model stages"], BATCHES["the store"]]
STAGES = {
    "fetch",
    "fetch_text",
    "quantize",
    "generation",
    "logits",
    "perplexity",
    "divergence",
    "checks",
    "summary",
    "report",
    "integrity",
}
# Rules outside the default run. Random weights are killed in a test of their own; what the others write goes through
# the same write_json, write_parquet and `replacing`.
TARGETS_OF_THEIR_OWN = {"synthesize", "noise_sweep", "calibration_study", "monitor", "budget", "gate", "card"}
TARGETS_OF_THEIR_OWN |= {"fetch_tasks", "tasks"}  # where a protocol names tasks
UNSTEADY = ("logs", "benchmarks")


def digests(project: Project) -> dict[str, str]:
    files = [p for p in (project / "results").rglob("*") if p.is_file() and not set(UNSTEADY) & set(p.parts)]
    return {str(p.relative_to(project.folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_the_batches_hold_every_stage():
    rules = "".join(path.read_text() for path in (CHECKOUT / "workflow/rules").glob("*.smk"))
    called = [stage for stage in re.findall(r'\*\*command\(\s*"(\w+)"', rules) if stage not in TARGETS_OF_THEIR_OWN]
    assert set(called) == STAGES
    assert len(called) - 1 == sum(map(len, BATCHES.values()))  # but fetch_pretrained


def run_killed(project: Project, monkeypatch, *targets: str) -> list[str]:
    """A run whose stages are killed, twice where they are tried twice; the command lines of those."""
    with monkeypatch.context() as patched:
        half_way(project, patched, then="die", attempts=2, nth=NTH)
        killed = project.snakemake(*targets, "--keep-going", "--quiet", "host", "reason")
    assert killed.code != 0
    assert "error: this job was killed (signal 9), most often because" in killed.output
    return (project / "half-way.txt").read_text().splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_a_stage_killed_while_it_writes_leaves_nothing_that_looks_finished(finished, batch, monkeypatch):
    """Then a run does this stage alone, and nothing of it is left over."""
    targets = list(batch.values())
    for target in targets:
        (finished / target).unlink()
    before = digests(finished)
    calls = run_killed(finished, monkeypatch, *targets)
    assert len(set(calls)) == len(targets), calls
    assert list((finished / "results").rglob(".*.part"))  # they were killed half-way
    after = digests(finished)
    assert {name: digest for name, digest in after.items() if not name.endswith(".part")}.items() <= before.items()
    for target in targets:
        assert not (finished / target).exists()

    assert finished.jobs(*targets) == set(batch)
    if batch in MODEL_BATCHES:  # that these complete is tested where they are killed from outside
        return
    finished.run(*targets)
    assert not list((finished / "results").rglob(".*.part"))
    assert set(after) - {n for n in after if n.endswith(".part")} < set(digests(finished))
    for target in targets:
        if target.endswith(".json"):
            assert json.loads((finished / target).read_text())
    assert finished.jobs(*targets) == set()


@pytest.mark.slow
def test_random_weights_killed_while_they_are_written_are_made_anew(small, monkeypatch):
    """Whole but for the file that marks them as random, and that folder has no final name."""
    shape = {"architecture": "data/reference-model/config.json", "seed": 0}
    small.edit("models/random", {"source": shape, "protocol": "tiny"})
    small.use_python(evaluation_python())
    target = small / "results/random/synthetic"
    assert len(set(run_killed(small, monkeypatch, "results/random/synthetic"))) == 1
    (left,) = target.parent.glob(".synthetic.*.part")
    assert (left / "model-00001.safetensors").is_file()
    assert not (left / "synthetic.json").exists()
    assert not target.exists()
    assert small.jobs("results/random/synthetic") == {"random: random weights"}
    small.run("results/random/synthetic")
    assert json.loads((target / "synthetic.json").read_text())["seed"] == 0
    assert not list(target.parent.glob(".*.part"))
    assert small.jobs("results/random/synthetic") == set()


def test_a_second_snakemake_in_one_folder_is_refused_and_the_first_completes(finished):
    """The stage waits for a file, so that the first is still running when the second asks."""
    wrapper = finished / "evaluation-python"
    wrapper.write_text(
        wrapper.read_text().replace("#!/bin/sh\n", "#!/bin/sh\nwhile [ -f wait ]; do sleep 0.05; done\n")
    )
    (finished / "wait").touch()
    target = "results/texts/builtin.json"
    (finished / target).unlink()
    first = finished.start(target)
    try:
        wait_until(lambda: list((finished / ".snakemake/locks").glob("*.lock")), "no lock", first)
        second = finished.snakemake(target, "results/summary.csv", "--forcerun", "summary_of_all")
        assert second.code != 0
        assert "Traceback" not in second.output
        assert "LockException" in second.output
        assert "snakemake --unlock" in second.output or "--unlock" in second.output
        assert not (finished / target).exists()
        (finished / "wait").unlink()
        assert first.wait(HUNG_SECONDS) == 0
    finally:
        (finished / "wait").unlink(missing_ok=True)
        end(first)
    assert (finished / target).is_file()
    assert finished.jobs(target) == set()


def test_an_environment_whose_build_was_killed_is_built_anew(shipped):
    """pip waits at a list that never comes; it is killed there, and Snakemake with it."""
    target = ".venv-evaluation/installed.txt"
    (shipped / "envs/evaluation.txt").write_text("--requirement more.txt\n")
    os.mkfifo(shipped / "envs/more.txt")
    first = shipped.start(target)

    def pip() -> list[psutil.Process]:
        installers = []
        for process in psutil.Process(first.pid).children(recursive=True):
            try:
                if process.cmdline()[1:5] == ["-I", "-m", "pip", "install"]:
                    installers.append(process)
            except (psutil.Error, IndexError):
                continue
        return installers

    try:
        (process,) = wait_until(pip, "no pip", first)
        os.kill(first.pid, signal.SIGKILL)
        os.kill(process.pid, signal.SIGKILL)
        first.wait(HUNG_SECONDS)
    finally:
        end(first)
    assert (shipped / ".venv-evaluation/bin/python").exists()
    assert not (shipped / target).exists()

    (shipped / "envs/more.txt").unlink()
    (shipped / "envs/more.txt").write_text("# nothing more\n")
    locked = shipped.snakemake(target)
    assert locked.code != 0
    assert "--unlock" in locked.output
    assert shipped.snakemake("--unlock").code == 0
    again = shipped.snakemake(target, "--rerun-incomplete")
    assert again.code == 0, again.output[-3000:]
    assert (shipped / target).is_file()
