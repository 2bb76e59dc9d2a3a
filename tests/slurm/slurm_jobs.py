"""What the tests ask of SLURM's jobs and of the files they write."""

import hashlib
import re

from conftest import HOLD
from workflow_project import Project

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


def others(project: Project) -> dict[str, str]:
    """{name: sha256} of the results but those of the stage that goes wrong, logs and times."""
    files = [f for f in (project / "results").rglob("*") if f.is_file() and not {"logs", "benchmarks"} & set(f.parts)]
    own = (project / STAGE).with_suffix("")
    return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.with_suffix("") != own}


def hold_one(project, slurm, *targets: str):
    """Start the stage, or what these targets need, and wait until its job runs; (Snakemake, the job's number)."""
    forget(project, STAGE)
    (project / HOLD).write_text(CALL)
    last = slurm.last_job()
    running = project.start(*(targets or [STAGE]))
    slurm.wait(lambda: any(CALL in line for line in project.calls()), "no job has started")
    (job,) = slurm.jobs_after(last)
    assert job["JobState"] == "RUNNING"
    return running, int(job["JobId"])
