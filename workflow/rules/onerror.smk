# How a run ends that did not go well: a failed job is left out of summaries and reports; a stopped one is cancelled.
import subprocess


def stopped():
    """Whether the user stopped the run; if not, it has come to its end, and a job of it failed."""
    return bool(workflow.scheduler._user_kill or workflow.scheduler.running or not workflow.scheduler.failed)


def cancel_jobs():
    """Cancel what SLURM still has of this run, whose jobs all have the run's name.

    The executor itself cancels those of a list, and takes them out of it for as long as it asks SLURM for their states.
    """
    run = getattr(workflow.scheduler._executor, "run_uuid", None)
    if run:
        subprocess.run(["scancel", f"--name={run}"])


onerror:
    cancel_jobs() if stopped() else gather_finished()
