"""The default run through a real SLURM: what each job asks for, where it runs, and what comes out."""

import itertools
import json
import re

import pytest
from conftest import CALLS, HOLD, METHODS, SlurmProject
from single_node import SingleNode
from slurm_jobs import asked, forget, jobs_of, stage_of
from workflow_project import CELL_STAGES, CHECKOUT

from quantharm.config import configuration, resources

RECORDS = ("quantization", *CELL_STAGES[1:])
MODEL_STAGES = {*CELL_STAGES, "logits"}
STAGE_JOBS = {(stage, "reference", method) for stage in CELL_STAGES for method in METHODS}
STAGE_JOBS |= {("logits", "reference", None)}
LOGIN_STAGES = {"fetch", "fetch_text", "summary", "report"}
# What two runs of the same computation may differ in: clocks, memory peaks, file times.
MEASURED = re.compile(
    r"seconds|timing|memory|finished|modified_ns|tokens_per_second|benchmark|decode_speed|prefill|command|relative|record_sha256"
)


def test_the_same_run_ends_well_without_accounting(both_runs, slurm):
    """Where `sacct` fails, as here, the executor's own default would ask it for ever."""
    with pytest.raises(RuntimeError, match="accounting storage is disabled"):
        slurm.command("sacct")
    _, result, _, _ = both_runs
    assert result.code == 0, result.output[-6000:]


def test_each_stage_is_one_job_with_what_it_needs(submitted, slurm, monkeypatch):
    monkeypatch.chdir(submitted.folder)  # the model's folder is relative
    config = configuration.complete(submitted.config(), CHECKOUT / "workflow/schemas/config.schema.yaml")
    model = config["models"]["reference"]
    jobs = jobs_of(submitted, slurm)
    assert sorted(map(str, map(stage_of, jobs))) == sorted(map(str, STAGE_JOBS))
    for job in jobs:
        stage = stage_of(job)[0]
        wanted = (1, resources.mem_mb(stage, model, 1), resources.runtime_minutes(stage, model, 1))
        assert asked(job) == wanted, job["Comment"]
        assert job["JobState"] == "COMPLETED"
        assert (job["NumNodes"], job["NumCPUs"], job["Requeue"]) == ("1", "1", "1")


def test_gpu_jobs_run_one_at_a_time_on_one_gpu(submitted, slurm):
    times = sorted((job["StartTime"], job["EndTime"]) for job in jobs_of(submitted, slurm))
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(times))
    # They were waiting for each other: more than one was in the queue.
    waited = [job for job in jobs_of(submitted, slurm) if job["SubmitTime"] < job["StartTime"]]
    assert len(waited) > len(times) / 2


def test_what_uses_the_network_stays_on_the_login_node(submitted):
    on_login, in_jobs = set(), set()
    for line in submitted.calls():
        where, _, _, _, module, *_ = line.split()  # the command begins with -m
        (on_login if where == "login" else in_jobs).add(module.removeprefix("quantharm."))
    assert on_login == LOGIN_STAGES
    assert in_jobs == MODEL_STAGES


def test_jobs_need_no_network(submitted):
    networks = {line.split()[1] for line in submitted.calls() if not line.startswith("login")}
    if networks == {"online"}:
        pytest.skip("this machine does not let a job be cut off from the network (unshare --net)")
    assert networks == {"offline"}


def test_jobs_see_the_gpu_that_they_were_given(submitted):
    assert {line.split()[2] for line in submitted.calls() if not line.startswith("login")} == {"0"}


def test_a_model_on_two_gpus_asks_for_two(finished):
    """And where no node has two, the run ends at once and says what was asked for."""
    finished.edit("models/reference/gpus", 2)
    result = finished.snakemake("results/reference/nf4/quantization.json")
    assert result.code == 1
    assert "--gpus=2" in result.output
    assert "--nodes=1" in result.output
    assert re.search(r"sbatch failed.+Requested node configuration is not available", result.output)


def test_several_gpus_are_shared_out(finished):
    """Jobs of one GPU run side by side, each on its own; a job of two has both."""
    stages = ["results/reference/nf4/perplexity.json", "results/reference/int8/perplexity.json"]
    with SingleNode(gpus=2) as two:
        project = SlurmProject(finished.folder, two)
        for stage in stages:
            forget(project, stage)
        (project / HOLD).write_text("quantharm.perplexity")
        running = project.start(*stages)
        two.wait(lambda: len(project.calls()) == 2, "no two jobs run at once")
        assert [job["JobState"] for job in two.jobs().values()] == ["RUNNING", "RUNNING"]
        (project / HOLD).unlink()
        result = running.wait()
        assert result.code == 0, result.output[-4000:]
        assert {line.split()[2] for line in project.calls()} == {"0", "1"}

        project.edit("models/reference/gpus", 2)
        forget(project, stages[0])
        (project / CALLS).unlink()
        assert project.snakemake(stages[0], "--rerun-triggers", "mtime").code == 0
        assert [line.split()[2] for line in project.calls()] == ["0,1"]


# What comes out


def figures(value, path=""):
    """(key path, figure) of a record, without what is measured by a clock."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not MEASURED.search(key):
                yield from figures(item, f"{path}.{key}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from figures(item, f"{path}[{number}]")
    else:
        yield path, value


def test_results_equal_a_local_run_to_the_last_bit(both_runs):
    """On one CPU with the same number of threads everything is deterministic but times and memory peaks."""
    submitted, _, local, beside = both_runs
    assert beside.code == 0, beside.output[-6000:]
    names = {str(p.relative_to(local.folder)) for p in (local / "results/reference").rglob("*.json")}
    assert {f"results/reference/{m}/{s}.json" for m in METHODS for s in RECORDS} <= names
    for name in sorted(names):
        ours, theirs = (dict(figures(json.loads((p / name).read_text()))) for p in (submitted, local))
        assert ours == theirs, name
    for name in ("perplexity.parquet", "divergence.parquet", "checkpoint/model.safetensors"):
        for method in METHODS:
            here = submitted.path(f"{method}/{name}")
            if here.is_file():  # the baseline has no checkpoint of its own
                assert here.read_bytes() == local.path(f"{method}/{name}").read_bytes(), here
    assert submitted.path("baseline/trace.parquet").read_bytes() == local.path("baseline/trace.parquet").read_bytes()
