# How a run ends that did not go well: a failed job is left out of summaries and reports; a stopped one is cancelled.
import atexit
import contextlib
import signal
import subprocess


def stopped():
    """Whether the user stopped the run; if not, it has come to its end, and a job of it failed."""
    scheduler = workflow.scheduler
    goes_on = scheduler.running or (scheduler.keepgoing and workflow.dag.ready_jobs)
    return bool(scheduler._user_kill or goes_on or not scheduler.failed)


def cancel_running():
    """Cancel what SLURM still has of this run, whose jobs all have the run's name.

    The executor cancels the jobs on a list of its own, which is empty while it asks SLURM for their states. This is done
    as the process ends, also after a second Ctrl-C, when Snakemake no longer calls onerror.
    """
    scheduler = workflow.scheduler
    run = scheduler and getattr(scheduler._executor, "run_uuid", None)
    if run and scheduler.running:
        subprocess.run(["scancel", f"--name={run}"])


if workflow.is_main_process:
    atexit.register(cancel_running)
    # A terminal that is closed counts as Ctrl-C, so that neither jobs nor the lock stay; except after nohup.
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        with contextlib.suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGHUP, signal.default_int_handler)


onerror:
    if not stopped():
        gather_finished()
