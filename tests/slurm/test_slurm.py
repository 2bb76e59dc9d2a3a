"""The workflow through a real SLURM: what jobs ask for, what comes out, and what happens when one ends badly."""

import hashlib
import itertools
import json
import re
import time
from pathlib import Path

import pytest
import yaml
from conftest import HOLD, NEEDS_MB, SlurmProject
from workflow_project import CHECKOUT, FAIL, METHODS, Project, evaluation_python

from quantharm import configuration, resources

PROFILE = CHECKOUT / "workflow/profiles/slurm/profile.yaml"
STAGES = ("quantize", "generation", "perplexity", "divergence", "checks")
RECORDS = ("quantization", *STAGES[1:])
STAGE_JOBS = {(stage, "reference", method) for stage in STAGES for method in METHODS} | {("logits", "reference", None)}
LOGIN_STAGES = {"fetch", "fetch_text", "summary", "report"}
SMALL_NODE_MB = 4_000
KILL_SECONDS = 8
LONGEST_SECONDS = 900  # 270 on two quiet cores; tests share theirs
# What two runs of the same computation may differ in: clocks, memory peaks, file times.
MEASURED = re.compile(
    r"seconds|timing|memory|finished|modified_ns|tokens_per_second|benchmark|decode_speed|prefill|command|relative|record_sha256"
)
STAGE = "results/reference/nf4/perplexity.json"
CALL = "quantharm.perplexity --quantization results/reference/nf4/"


def stage_of(job: dict[str, str]) -> tuple[str, str, str | None]:
    """(stage, model, method) of a SLURM job, from the comment that the executor gives it."""
    stage, model, method = re.fullmatch(r"rule_([a-z]+)_wildcards_([a-z]+)_?(\w+)?", job["Comment"]).groups()
    return stage, model, method


def jobs_of(project, slurm) -> list[dict[str, str]]:
    return [job for job in slurm.jobs().values() if job["WorkDir"] == str(project.folder)]


def minutes(limit: str) -> int:
    """SLURM's [days-]hours:minutes:seconds."""
    days, _, clock = limit.rpartition("-")
    hours, minute, _ = clock.split(":")
    return int(days or 0) * 1440 + int(hours) * 60 + int(minute)


def asked(job: dict[str, str]) -> tuple[int, int, int]:
    """(GPUs, MB, minutes)"""
    gpus = re.search(r"gpu:(\d+)", job.get("TresPerJob", ""))
    memory, unit = re.fullmatch(r"([\d.]+)([MG])", job["MinMemoryNode"]).groups()
    return int(gpus[1]) if gpus else 0, int(float(memory) * {"M": 1, "G": 1024}[unit]), minutes(job["TimeLimit"])


def forget(project: Project, path: str) -> None:
    """Remove a stage's record and rows."""
    for suffix in (".json", ".parquet"):
        (project / path).with_suffix(suffix).unlink()


def digests(project: Project) -> dict[str, str]:
    """sha256 of every result file but logs."""
    files = [f for f in (project / "results").rglob("*") if f.is_file() and "logs" not in f.parts]
    return {str(f.relative_to(project.folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def hold_one(project, slurm):
    """Start the stage and wait until its job runs; (Snakemake, the job's number)."""
    forget(project, STAGE)
    (project / HOLD).write_text(CALL)
    last = slurm.last_job()
    running = project.start(STAGE)
    slurm.wait(lambda: any(CALL in line for line in project.calls()), 120, "no job has started")
    (job,) = slurm.jobs_after(last)
    assert job["JobState"] == "RUNNING"
    return running, int(job["JobId"])


# The profile and what jobs ask for


def test_a_user_edits_partition_and_account_only():
    text = PROFILE.read_text(encoding="utf-8")
    blank = {key for key, value in yaml.safe_load(text)["default-resources"].items() if value == ""}
    assert blank == {"slurm_partition", "slurm_account"}
    for key in blank:
        assert re.search(rf'^  {key}: "" # \w.+$', text, re.M)
    assert "gpu=" not in str(yaml.safe_load(text).get("resources", ""))  # a limit would hold back a cluster of many


def test_the_same_run_ends_well_without_accounting(both_runs, slurm):
    """Where `sacct` fails, as here, the executor's own default would ask it for ever."""
    with pytest.raises(RuntimeError, match="accounting storage is disabled"):
        slurm.command("sacct")
    _, result, _, _ = both_runs
    assert result.code == 0, result.output[-6000:]
    assert result.seconds < LONGEST_SECONDS


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


@pytest.mark.parametrize("stage", [*STAGES, "logits"])
def test_resources_follow_size_and_attempt(stage):
    model = {"billion_parameters": None, "source": str(CHECKOUT / "data/reference-model"), "dtype": "bfloat16"}
    assert resources.mem_mb(stage, model, 2) <= SMALL_NODE_MB  # the built-in model fits a small node, twice tried
    for function in (resources.mem_mb, resources.runtime_minutes):
        needs = [function(stage, model | {"billion_parameters": b}, 1) for b in (0.5, 4, 7, 70)]
        assert needs == sorted(set(needs))
        assert function(stage, model, 1) < function(stage, model, 2) < function(stage, model, 3)
    assert resources.mem_mb(stage, model | {"billion_parameters": 7}, 1) > 7 * 2_000
    assert resources.mem_mb(stage, model | {"billion_parameters": 7, "dtype": "float32"}, 1) > 7 * 4_000


def test_the_table_in_the_readme_is_what_is_asked_for():
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    for stage in (*STAGES, "logits"):
        cells = []
        for billions in (0.5, 4, 7, 70):
            model = {"billion_parameters": billions, "source": "a/b", "dtype": "bfloat16"}
            memory = resources.mem_mb(stage, model, 1) / 1000
            cells.append(f"{resources.runtime_minutes(stage, model, 1)} min, {memory:.1f} GB")
        assert re.search(rf"^\| {stage}( \(.*\))? \| {re.escape(' | '.join(cells))} \|$", readme, re.M), stage


def test_gpu_jobs_run_one_at_a_time_on_one_gpu(submitted, slurm):
    times = sorted((job["StartTime"], job["EndTime"]) for job in jobs_of(submitted, slurm))
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(times))
    # They were waiting for each other: more than one was in the queue.
    waited = [job for job in jobs_of(submitted, slurm) if job["SubmitTime"] < job["StartTime"]]
    assert len(waited) > len(times) / 2


def test_what_uses_the_network_stays_on_the_login_node(submitted):
    on_login, in_jobs = set(), set()
    for line in submitted.calls():
        where, _, _, module, *_ = line.split()  # the command begins with -m
        (on_login if where == "login" else in_jobs).add(module.removeprefix("quantharm."))
    assert on_login == LOGIN_STAGES
    assert in_jobs == {*STAGES, "logits"}


def test_jobs_need_no_network(submitted):
    networks = {line.split()[1] for line in submitted.calls() if not line.startswith("login")}
    if networks == {"online"}:
        pytest.skip("this machine does not let a job be cut off from the network (unshare --net)")
    assert networks == {"offline"}


def test_a_model_on_two_gpus_asks_for_two(finished):
    """And where no node has two, the run ends at once and says what was asked for."""
    finished.edit("models/reference/gpus", 2)
    result = finished.snakemake("results/reference/nf4/quantization.json", timeout=200)
    assert result.code == 1
    assert "--gpus=2" in result.output
    assert "--nodes=1" in result.output
    assert re.search(r"sbatch failed.+Requested node configuration is not available", result.output)


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


# What goes wrong


def test_a_failed_stage_runs_again_alone(finished, slurm):
    """It is tried twice, with more; the others go on; then the same command does nothing but this stage."""
    other = STAGE.replace("nf4", "int8")
    forget(finished, STAGE)
    forget(finished, other)
    untouched = digests(finished)
    (finished / FAIL).write_text(CALL)
    last = slurm.last_job()
    result = finished.snakemake(STAGE, other, timeout=300)
    assert result.code == 1
    assert "results/logs/perplexity/reference/nf4.log" in result.output
    assert "made to fail" in (finished / "results/logs/perplexity/reference/nf4.log").read_text()
    failed = [asked(job) for job in slurm.jobs_after(last) if job["JobState"] == "FAILED"]
    assert len(failed) == 2
    assert failed[1][0] == failed[0][0] == 1
    assert failed[1][1:] > failed[0][1:]
    assert (finished / other).is_file()
    assert not (finished / STAGE).exists()
    (finished / FAIL).unlink()
    last = slurm.last_job()
    assert finished.snakemake(STAGE, other, timeout=300).code == 0
    assert [stage_of(job) for job in slurm.jobs_after(last)] == [("perplexity", "reference", "nf4")]
    after = digests(finished)
    assert {name: after[name] for name in untouched if "benchmarks" not in name} == {
        name: digest for name, digest in untouched.items() if "benchmarks" not in name
    }


def test_a_cancelled_job_is_tried_again_and_then_ends_clearly(finished, slurm):
    """scancel of the first attempt: a second one, with more. Of the second: an end that says so. Then it completes."""
    running, first = hold_one(finished, slurm)
    slurm.command("scancel", str(first))
    slurm.wait(lambda: slurm.last_job() > first, 120, "no second attempt")
    second = slurm.last_job()
    assert asked(slurm.jobs()[second])[1:] > asked(slurm.jobs()[first])[1:]
    slurm.wait(lambda: slurm.jobs()[second]["JobState"] == "RUNNING", 60, "the second attempt does not start")
    slurm.command("scancel", str(second))
    result = running.wait()
    assert result.code == 1
    assert f"SLURM-job '{second}' failed, SLURM status is: 'CANCELLED'" in result.output
    assert not (finished / STAGE).exists()
    (finished / HOLD).unlink()
    assert finished.snakemake(STAGE, timeout=300).code == 0
    assert (finished / STAGE).is_file()


def test_a_job_that_is_killed_for_its_memory_is_tried_with_more_and_then_ends_clearly(slurm, tmp_path):
    """First no attempt gets enough: two of them, the second with more. Then the second one gets enough."""
    project = SlurmProject(tmp_path / "project", slurm)
    Project.fresh(project.folder)
    project.shorten()
    project.use_python(evaluation_python())
    target = "results/reference/nf4/quantization.json"

    def attempts(needs: int):
        (project / NEEDS_MB).write_text(str(needs))
        last = slurm.last_job()
        result = project.snakemake(target, timeout=300)
        jobs = slurm.jobs_after(last)
        return result, [asked(job)[1] for job in jobs], [job["JobState"] for job in jobs]

    result, memory, states = attempts(999_998)
    assert result.code == 1
    assert states == ["FAILED", "FAILED"]
    assert memory[1] == pytest.approx(1.5 * memory[0], abs=1)
    assert "results/logs/quantize/reference/nf4.log" in result.output
    assert not (project / target).exists()
    assert not (project / "results/reference/nf4/checkpoint").exists()

    result, again, states = attempts(memory[1])
    assert again == memory
    assert states == ["FAILED", "COMPLETED"]
    assert result.code == 0, result.output[-4000:]
    assert (project / target).is_file()


def test_a_node_set_down_and_resumed(finished, slurm):
    """SLURM itself queues the job again; Snakemake waits for it and submits no second one."""
    running, job = hold_one(finished, slurm)
    (finished / HOLD).unlink()
    slurm.set_node("DOWN")
    slurm.wait(lambda: slurm.jobs()[job]["JobState"] == "PENDING", 30, "the job is not queued again")
    assert slurm.node_state().startswith("DOWN")
    slurm.set_node("RESUME")
    # SLURM gives the node two minutes to get rid of the first attempt. Here it is known when that is done; after it
    # slurmd kills once more, by the job's number, which a second attempt must not meet.
    slurm.wait(lambda: slurm.has_left_the_node(job), 60, "the first attempt goes on")
    time.sleep(KILL_SECONDS)
    slurm.command("scontrol", "update", f"JobId={job}", "StartTime=now")
    result = running.wait()
    assert result.code == 0, result.output[-4000:]
    assert slurm.last_job() == job
    assert slurm.jobs()[job]["Restarts"] == "1"


def test_ctrl_c_cancels_the_jobs_and_the_same_command_completes(finished, slurm):
    running, job = hold_one(finished, slurm)
    running.interrupt()
    result = running.wait(120)
    assert result.code != 0
    slurm.wait(lambda: slurm.jobs()[job]["JobState"] == "CANCELLED", 20, "the job goes on")
    assert not (finished / STAGE).exists()
    (finished / HOLD).unlink()
    again = finished.snakemake(STAGE, timeout=300)
    assert again.code == 0, again.output[-4000:]
    assert (finished / STAGE).is_file()


def test_nothing_is_left_of_a_cluster():
    """Started and stopped once more: its processes and its folder are gone."""
    from single_node import SingleNode, missing

    if missing():
        pytest.skip(missing())
    with SingleNode() as node:
        processes = [int(p.read_text()) for p in [*node.folder.glob("*.pid"), node.folder / "munge/pid"]]
        assert len(processes) == 3
    assert not node.folder.exists()
    assert not [p for p in processes if Path(f"/proc/{p}").exists()]
