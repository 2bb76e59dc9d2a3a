# After a run with failed jobs: the summary and the report of the cells that were finished; those that were not are named.
#
# Snakemake starts no job whose inputs failed. So at the end of such a run it is called once more, for the summaries and
# reports alone, with a file that names the unfinished cells, which are then no inputs. The exit code still tells of the
# failure, and the next run does what failed, and the summaries and reports again, since their parameters changed.
import signal
import subprocess
import tempfile
import time

from quantharm.common import left_out

BEGAN = time.time()
GATHERING = ["summary", "report", "summary_of_all", "report_of_all", "budget"]
LEFT_OUT = json.loads(Path(LEFT_OUT_FILE).read_text(encoding="utf-8")) if LEFT_OUT_FILE else []
LEFT_OUT += [  # of a run that goes well, too
    left_out.without_weights(model, method, engines.NO_WEIGHTS)
    for model in config["models"]
    for method in methods.methods_of(config, model)
    if engines.is_served(config["methods"][method])
    and (model, method) not in {(entry["model"], entry["method"]) for entry in LEFT_OUT}
]


def left_out_of(wildcards):
    """What a model's summary lacks."""
    return json.dumps([entry for entry in LEFT_OUT if entry["model"] == wildcards.model])


def models_left_out(wildcards):
    """What the tables over all models lack, besides what each model's own summary says."""
    return json.dumps([entry for entry in LEFT_OUT if entry["method"] is None])


def models_of_default_run():
    absent = {entry["model"] for entry in LEFT_OUT if entry["method"] is None}
    return [model for model in config["evaluate"]["models"] if model not in absent]


def cells_of(wildcards):
    """The folders of a model's cells, without those that were not finished."""
    absent = {entry["method"] for entry in LEFT_OUT if entry["model"] == wildcards.model and not entry["compared"]}
    chosen = methods.methods_of(config, wildcards.model)
    return [f"results/{wildcards.model}/{method}" for method in chosen if method not in absent]


def finished_files(wildcards, files):
    """The files of a model's cells, but the integrity of those that lack it alone."""
    lacking = {f"results/{entry['model']}/{entry['method']}" for entry in LEFT_OUT if entry["compared"]}
    return [
        f"{cell}/{file}"
        for cell in cells_of(wildcards)
        for file in files
        if not (cell in lacking and file == f"{left_out.INTEGRITY}.json")
    ]


def failed_before(job):
    """The failed job that kept a job from being done, itself perhaps; None where the run ended before it."""
    waiting, seen = [job], set()
    while waiting:
        job = waiting.pop(0)
        if job in workflow.scheduler.failed:
            return job
        waiting += [before for before in workflow.dag.dependencies[job] if before not in seen]
        seen.update(waiting)
    return None


def entry_of(model, method, unfinished):
    """What to say of a cell (or of a model, method None) of which these jobs were not done."""
    causes = [cause for cause in map(failed_before, unfinished) if cause]
    log = str(causes[0].log[0]) if causes else None
    reason = left_out.reason_in(Path(log), BEGAN) if log else "the run ended before it"
    other = causes[0].wildcards_dict.get("method", method) if causes else method
    if other != method:  # a cell's checks and integrity need the baseline's records
        reason = left_out.without(other, reason)
    return left_out.LeftOut(
        model=model,
        method=method,
        stage=(causes or unfinished)[0].rule.name,
        reason=reason,
        log=log,
        compared=method is not None and {job.rule.name for job in unfinished} == {left_out.INTEGRITY},
    )


def entries_left_out(unfinished):
    """Of each model that is to be summarised: the cells that were not finished, and itself if its summary failed."""
    makers = {str(file): job for job in unfinished for file in job.output}
    gathering = [job for job in unfinished if job.rule.name in GATHERING and "model" in job.wildcards_dict]
    found = []
    for model in dict.fromkeys(job.wildcards_dict["model"] for job in gathering):
        for method in methods.methods_of(config, model):
            files = [f"results/{model}/{method}/{file}" for file in [*cell_files(model), "divergence.parquet"]]
            jobs = list(dict.fromkeys(makers[file] for file in files if file in makers))
            found += [entry_of(model, method, jobs)] if jobs else []
        found = left_out.without_baseline(found, model, methods.methods_of(config, model))
    for job in gathering:
        if job in workflow.scheduler.failed:
            found.append(entry_of(job.wildcards_dict["model"], None, [job]))
    return found


def call_quietly(command, environment):
    """Runs a command, prints what it said only if it fails, and returns the advice to the user.

    On Ctrl-C the command is interrupted and awaited.
    """
    gathering = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said, _ = gathering.communicate()
    except KeyboardInterrupt:
        gathering.send_signal(signal.SIGINT)  # SIGTERM can find Snakemake's scheduler in its own lock, for ever
        gathering.communicate()
        return "Interrupted before summary and report were made; run the same command again."
    if gathering.returncode != 0:
        print(said, file=sys.stderr)
    return "Mend the cause and run the same command again; finished jobs are not run again."


def gather_finished():
    """Make the summaries and reports that were asked for, of what was finished, and say what they lack."""
    unfinished = list(workflow.dag.needrun_jobs())
    gathering = [job for job in unfinished if job.rule.name in GATHERING]
    targets = [str(job.output[0]) for job in gathering if job not in workflow.scheduler.failed]
    if LEFT_OUT_FILE or not targets or not all(map(os.path.exists, ENVIRONMENT)):
        return
    entries = entries_left_out(unfinished)
    print("\nLeft out of summary and report:", *map(left_out.line, entries), sep="\n  ", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        own_config, left_out_file = Path(folder, "config.json"), Path(folder, "left-out.json")
        own_config.write_text(json.dumps(config), encoding="utf-8")  # config.yaml may be another by now
        left_out_file.write_text(json.dumps(entries), encoding="utf-8")
        # As Snakemake calls itself for a job of its own, with this run's configuration.
        settings = workflow.spawned_job_args_factory.general_args(workflow.executor_plugin.common_settings)
        command = [sys.executable, "-m", "snakemake", "--snakefile", workflow.main_snakefile]
        command += "--profile none --workflow-profile none --executor local --cores 1 --keep-going".split()
        command += [*shlex.split(settings), "--configfiles", str(own_config)]  # in place of those in the settings
        command += ["--allowed-rules", *GATHERING, "--", *targets]
        advice = call_quietly(command, os.environ | {"QUANTHARM_LEFT_OUT": str(left_out_file)})
    print(advice, file=sys.stderr)
