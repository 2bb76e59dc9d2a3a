"""What goes wrong on a cluster: each fault ends in a state from which the same command completes."""

import contextlib
from pathlib import Path

import pytest
from conftest import HOLD, NEEDS_MB, SlurmProject
from cut_model import cut_to_two_layers
from limits import HUNG_SECONDS
from slurm_jobs import CALL, STAGE, asked, forget, hold_one, others, stage_of
from workflow_project import FAIL, PYTHON, Project, evaluation_python


def test_a_failed_stage_runs_again_alone(finished, slurm):
    """It is tried twice, with more; the others go on; then the same command does nothing but this stage."""
    other = STAGE.replace("nf4", "int8")
    forget(finished, STAGE)
    forget(finished, other)
    before = others(finished)
    (finished / FAIL).write_text(CALL)
    last = slurm.last_job()
    result = finished.snakemake(STAGE, other)
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
    assert finished.snakemake(STAGE, other).code == 0
    assert [stage_of(job) for job in slurm.jobs_after(last)] == [("perplexity", "reference", "nf4")]
    assert before.items() <= others(finished).items()


def test_a_cancelled_job_is_tried_again_and_then_ends_clearly(finished, slurm):
    """scancel of the first attempt: a second one, with more. Of the second: an end that says so. Then it completes."""
    before = others(finished)
    running, first = hold_one(finished, slurm)
    slurm.command("scancel", str(first))
    slurm.wait(lambda: slurm.last_job() > first, "no second attempt")
    second = slurm.last_job()
    assert asked(slurm.jobs()[second])[1:] > asked(slurm.jobs()[first])[1:]
    slurm.wait(lambda: slurm.jobs()[second]["JobState"] == "RUNNING", "the second attempt does not start")
    slurm.command("scancel", str(second))
    result = running.wait()
    assert result.code == 1
    assert f"SLURM-job '{second}' failed, SLURM status is: 'CANCELLED'" in result.output
    assert not (finished / STAGE).exists()
    (finished / HOLD).unlink()
    assert others(finished) == before
    assert finished.snakemake(STAGE).code == 0
    assert (finished / STAGE).is_file()
    assert others(finished) == before


def test_a_job_that_is_killed_for_its_memory_is_tried_with_more_and_then_ends_clearly(slurm, tmp_path):
    """First no attempt gets enough: two of them, the second with more. Then the second one gets enough.

    Its jobs use the environment that the workflow builds, in the project's folder, which is what a cluster shares.
    """
    project = SlurmProject(tmp_path / "project", slurm)
    Project.fresh(project.folder)
    project.shorten()
    cut_to_two_layers(project / "data/reference-model")
    project.use_python(evaluation_python())
    (project / ".venv-evaluation/bin").mkdir(parents=True)
    (project / PYTHON).rename(project / ".venv-evaluation/bin/python")
    (project / ".venv-evaluation/installed.txt").touch()
    project.edit("python", None)
    target = "results/reference/nf4/quantization.json"

    def attempts(needs: int):
        (project / NEEDS_MB).write_text(str(needs))
        last = slurm.last_job()
        result = project.snakemake(target)
        jobs = slurm.jobs_after(last)
        return result, [asked(job)[1] for job in jobs], [job["JobState"] for job in jobs]

    result, memory, states = attempts(999_998)
    assert result.code == 1
    assert states == ["FAILED", "FAILED"]
    assert memory[1] == pytest.approx(1.5 * memory[0], abs=1)
    assert "results/logs/quantize/reference/nf4.log" in result.output
    logs = list((project / ".snakemake/slurm_logs/rule_quantize").rglob("*.log"))
    assert len(logs) == len(states)
    assert all("error: this job was killed (signal 9)" in log.read_text(encoding="utf-8") for log in logs)
    assert not (project / target).exists()
    assert not (project / "results/reference/nf4/checkpoint").exists()

    result, again, states = attempts(memory[1])
    assert again == memory
    assert states == ["FAILED", "COMPLETED"]
    assert result.code == 0, result.output[-4000:]
    assert (project / target).is_file()


def test_a_node_set_down_and_resumed(finished, slurm):
    """SLURM itself queues the job again; Snakemake waits for it and submits no second one."""
    before = others(finished)
    running, job = hold_one(finished, slurm)
    slurm.set_node("DOWN")
    slurm.wait(lambda: slurm.jobs()[job]["JobState"] == "PENDING", "the job is not queued again")
    (finished / HOLD).unlink()
    assert slurm.node_state().startswith("DOWN")
    slurm.set_node("RESUME")
    result = running.wait()  # two minutes longer, which SLURM gives the node to get rid of the first attempt
    assert result.code == 0, result.output[-4000:]
    assert slurm.last_job() == job
    assert slurm.jobs()[job]["Restarts"] == "1"
    assert others(finished) == before


@pytest.mark.parametrize("while_asked", [False, True])
def test_ctrl_c_cancels_the_jobs_and_the_same_command_completes(finished, slurm, while_asked):
    """Also twice, while Snakemake asks SLURM for their states and holds none. No report is made of the rest."""
    before = others(finished)
    running, job = hold_one(finished, slurm, "all")
    with slurm.holds_squeue() if while_asked else contextlib.nullcontext():
        running.interrupt()
        slurm.wait(lambda: "Terminating processes on user request" in running.text(), "Snakemake goes on")
        if while_asked:
            running.interrupt()
            running.process.wait(HUNG_SECONDS)  # as it does not wait for the answer
    result = running.wait()
    assert result.code != 0
    slurm.wait(lambda: slurm.jobs()[job]["JobState"] == "CANCELLED", "the job goes on")
    assert not (finished / STAGE).exists()
    assert others(finished) == before
    (finished / HOLD).unlink()
    again = finished.snakemake(STAGE)
    assert again.code == 0, again.output[-4000:]
    assert (finished / STAGE).is_file()
    assert others(finished) == before


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
