# What the rules share: the files that a stage is made of, its command, its protocol, its memory.
import atexit
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

from quantharm.common import warm_start
from quantharm.config import derived_methods, engines, methods, names, resources, tasks as task_lists
from quantharm.config.dependencies import module_files
from quantharm.reporting import names as report_names

CONDA = any(method.name == "CONDA" for method in workflow.deployment_settings.deployment_method)
OWN_PYTHON = config["python"] is None and not CONDA
ENVIRONMENT = [".venv-evaluation/installed.txt"] if OWN_PYTHON else []
MOST_THREADS = config["threads"]
PYTHON = ".venv-evaluation/bin/python" if OWN_PYTHON else config["python"] or "python"

# Every stage but those that fetch sets itself offline. A PYTHONPATH that is set already is kept, after our own.
# OpenMP threads that wait must not spin: where other programs use the cores, spinning makes a small model 50 times
# slower. Compiled modules are kept, though containers like to forbid it: torch and transformers compiled at each start
# cost 10 seconds. glibc keeps freed memory: returning it and faulting it in again doubles the time of a small model.
# A killed stage cannot say so itself: its shell does, and Snakemake then names the rule and the log. (It stands in the
# environment, because Snakemake prints the whole command of a failed job.)
os.environ.update(
    KILLED="error: this job was killed (signal 9), most often because memory ran out; free some, or give the model's"
    " jobs more by a larger `billion_parameters:` in the config, then run the same command again"
)
shell.prefix(
    "set -euo pipefail; unset PYTHONDONTWRITEBYTECODE; trap 'test $? -ne 137 || echo \"$KILLED\" >&2' EXIT;"
    f" test $OMP_NUM_THREADS -le {MOST_THREADS} || export OMP_NUM_THREADS={MOST_THREADS} MKL_NUM_THREADS={MOST_THREADS};"
    f" export PYTHONPATH={shlex.quote(str(PACKAGE))}${{{{PYTHONPATH:+:$PYTHONPATH}}}}"
    f" OMP_WAIT_POLICY=passive MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=268435456"
    f" WORKFLOW_PYTHON={shlex.quote(sys.executable)}; "
)

# The first job starts the interpreter that the later ones are forks of (common/warm_start.py).
if config["warm_start"] and workflow.is_main_process:
    folder_of_server = tempfile.mkdtemp(prefix="quantharm-")
    atexit.register(shutil.rmtree, folder_of_server, True)
    os.environ[warm_start.VARIABLE] = f"{folder_of_server}:{os.getpid()}"


wildcard_constraints:
    model="|".join(map(re.escape, config["models"])),
    method="|".join(map(re.escape, config["methods"])),
    text="|".join(map(re.escape, config["texts"])),
    extra="[a-z0-9-]+",


def modules(*names):
    """The files that modules of the package are made of, as paths from the working directory."""
    return [os.path.relpath(path) for path in module_files(*names)]


def package(stage):
    """Input function: the files a stage's module is made of, and its cell's quantizer and engine."""

    def files(wildcards):
        method = config["methods"][wildcards.method] if "method" in wildcards.keys() else None
        engine = engines.module_of(method) if method else None
        of_method = [f"quantizers.{method['quantizer']}"] if method else []
        return modules(stage, *of_method, *([f"engines.{engine}"] if engine else []))

    return files


def extra_packages(wildcards):
    """Input function: the packages that a cell's method needs beside the evaluation environment's."""
    names = methods.extra_packages(config["methods"][wildcards.method]) if OWN_PYTHON or CONDA else []
    return [f".venv-extra/{name}/installed.txt" for name in names]


def packages_of(wildcards):
    """Has a cell's job find them."""
    folders = [os.path.dirname(path) for path in extra_packages(wildcards)] if "method" in wildcards.keys() else []
    return f"PYTHONPATH={':'.join(map(shlex.quote, folders))}:$PYTHONPATH" if folders else ""


def model_value(key):
    """Function of the wildcards: a key of the model's entry."""
    return lambda wildcards: config["models"][wildcards.model][key]


def protocol(key):
    """Function of the wildcards: a key of the model's protocol, of its `benchmark:` with `benchmark.` in front."""

    def value(wildcards):
        entry = config["protocols"][config["models"][wildcards.model]["protocol"]]
        return entry["benchmark"][key.removeprefix("benchmark.")] if "." in key else entry[key]

    return value


def protocol_word(key):
    """Function of the wildcards: a protocol's true, false or word, as a word."""
    return lambda wildcards: str(protocol(key)(wildcards)).lower()


def words_of(flags):
    """{flag: value} as words: nothing for None and False, the flag alone for True, one word more for each of a list."""
    for key, value in flags.items():
        if value is not None and value is not False:
            yield f"--{key.replace('_', '-')}"
            yield from map(str, value if isinstance(value, list) else [] if value is True else [value])


PLACE = re.compile(r"\{(wildcards|input|output)(\.\w+)?\}")


def command(stage, **flags):
    """Parameters of a rule: `command`, the stage and its flags as the shell takes them, and `settings`, what they set.

    A value may be a function of the wildcards; a dictionary stands for flags of its own. `{input.x}`, `{output.x}` and
    `{wildcards.x}` are filled in, and a flag for which a rule has no such file is left out. Snakemake does not look for
    changes in a parameter that is made of inputs and outputs, as the command is: so the settings are one of their own.
    """

    def valued(wildcards):
        return {flag: value(wildcards) if callable(value) else value for flag, value in flags.items()}

    def text(wildcards, input, output):
        job, values = {"wildcards": wildcards, "input": input, "output": output}, {}
        for flag, value in valued(wildcards).items():
            if isinstance(flags[flag], str):
                value = PLACE.sub(lambda place: place[0].format(**job), value) or None
            values |= value if isinstance(value, dict) else {flag: value}
        return shlex.join([stage, *words_of(values)])

    return {"command": text, "settings": lambda wildcards: json.dumps(valued(wildcards), default=str)}


def text_of(wildcards):
    return f"results/texts/{protocol('text')(wildcards)}.txt"


prompts_of = protocol("prompts")


def needs(stage, model=None, most_gpus=float("inf")):
    """{resource: function}: what a stage asks for grows with the model's size and with each attempt."""

    def entry(wildcards):
        return config["models"][model or wildcards.model]

    return {
        "gpu": lambda wildcards: min(entry(wildcards)["gpus"], most_gpus) if may_use_gpus() else 0,
        "mem_mb": lambda wildcards, attempt: resources.mem_mb(stage, entry(wildcards), attempt),
        "runtime": lambda wildcards, attempt: resources.runtime_minutes(stage, entry(wildcards), attempt),
    }


def may_use_gpus():
    """Whether a job may take GPUs; if not, jobs on a CPU share its cores instead of queueing for `--resources gpu=1`."""
    here = workflow.local_exec and not workflow.remote_exec
    return config["device"] != "cpu" and (config["device"] == "cuda" or not here or resources.host_has_gpu())


def threads_of_job(wildcards):
    """Threads of a model job: one for a small model, so that several jobs share the cores."""
    return resources.threads(config["models"][wildcards.model], config["threads"])


def threads_of_timed_job(wildcards):
    """As many as the config says, but all cores of this host where no GPU keeps other jobs from running beside it."""
    return config["threads"] if may_use_gpus() else max(config["threads"], workflow.cores or 1)


def local_files(source):
    """The files of a model that is a folder here, so that changing one is noticed."""
    folder = Path(source)
    if folder.is_file():  # in GGUF
        return [str(folder)]
    return sorted(str(p) for p in folder.iterdir() if p.is_file()) if folder.is_dir() else []


def is_synthetic(model):
    """Whether a model of the config is a shape to fill with random weights."""
    return isinstance(config["models"][model]["source"], dict)


def source_of(model):
    """A model's folder or hub id; of random weights, the folder that they are written into."""
    return f"results/{model}/synthetic" if is_synthetic(model) else config["models"][model]["source"]


def source_files(wildcards):
    """Input function: the files of a local model, or the folder that is made for one of random weights."""
    return [source_of(wildcards.model)] if is_synthetic(wildcards.model) else local_files(source_of(wildcards.model))


def source_flags(wildcards):
    """{flag: value} that say where a model, or a third party's checkpoint of it, is and what it may do."""
    entry = config["models"][wildcards.model] | {"source": source_of(wildcards.model)}
    entry |= config["methods"][wildcards.method] if "method" in wildcards.keys() else {}
    return {key: entry.get(key) or None for key in ("source", "revision", "allow_pickle", "trust_remote_code")}


def calibration_of(wildcards):
    """The calibration text, for the quantizers that have settings for one."""
    entry = config["methods"][wildcards.method]
    return (entry.get("calibration_text") or config["calibration"]) if methods.uses_calibration(entry) else []


def pretrained_source(wildcards):
    is_pretrained = config["methods"][wildcards.method]["quantizer"] == "pretrained"
    return f"results/{wildcards.model}/{wildcards.method}/source.json" if is_pretrained else []


def baseline_integrity(wildcards):
    """The model's own findings, which are the baseline's; every other cell refers to them."""
    return [] if wildcards.method == "baseline" else f"results/{wildcards.model}/baseline/integrity.json"


def of_signed_model(key):
    """Input function: a model's `signature` or `public_key`, where the config names them; judged with the baseline."""

    def file(wildcards):
        model = config["models"][wildcards.model]
        return model[key] if model["signature"] and wildcards.method == "baseline" else []

    return file


def records_of_default_run():
    """Targets, so that a record that was deleted is made again although what was made of it is still there.

    Checkpoints and the log-prob store are no targets: they are large, and may be deleted until something needs them.
    """
    models = config["evaluate"]["models"]
    once = [f"results/{model}/{stage}.json" for model in models for stage in ("source", "summary", "baseline/logits")]
    cells = [(model, method) for model in models for method in methods.methods_of(config, model)]
    return once + [
        f"results/{model}/{method}/{file}"
        for model, method in cells
        for file in [*cell_files(model), "divergence.parquet"]
        if not (file == "integrity.json" and engines.is_served(config["methods"][method]))
    ]


REPORT_TEMPLATES = sorted(os.path.relpath(path) for path in (PACKAGE / "report" / "templates").iterdir())
REPORTED_FILES = ["generation.parquet", "perplexity.parquet", "divergence.parquet", "checks.json", "integrity.json"]


def studies_of(model):
    """{file: time} of the studies beside the default run that have been made."""
    files = ["noise_sweep.json", "calibration_study.json", "monitor/history.parquet"]
    paths = [f"results/{model}/{file}" for file in files]
    return {path: os.path.getmtime(path) for path in paths if os.path.exists(path)}


def page(folder, caption, model):
    """A report() of a folder's page."""
    return report(f"{folder}/report.html", caption=caption, category="Reports", labels={"model": model, "form": "page"})


def charts_and_tables(folder, model, charts, tables):
    """A report() for each chart as SVG and for each table as CSV, its PNG or Parquet beside it."""
    files, overview = [], "overview-" if model == "all" else ""
    for kind, label, titles, shown, beside in (
        ("figure", "chart", charts, "svg", "png"),
        ("table", "table", tables, "csv", "parquet"),
    ):
        caption = f"../report/captions/{overview}{kind}.rst"
        for name, title in titles.items():
            file = f"{folder}/{kind}s/{name}"
            marks = {"caption": caption, "category": f"{label.title()}s", "labels": {"model": model, label: title}}
            files += [report(f"{file}.{shown}", **marks), f"{file}.{beside}"]
    return files


def answers_tasks(model):
    return bool(task_lists.tasks_of(config, model))


def task_option(key):
    """Function of the wildcards: a key of the `task_options` of the model's protocol."""
    return lambda wildcards: protocol("task_options")(wildcards)[key]


def tasks_as_json(wildcards):
    return json.dumps(task_lists.tasks_of(config, wildcards.model))


def own_task_files(wildcards):
    """Input function: the user's YAML tasks and what they name."""
    return task_lists.task_files(task_option("folder")(wildcards))


def baseline_answers(wildcards):
    """The baseline's answers, for every other method."""
    return [] if wildcards.method == "baseline" else f"results/{wildcards.model}/baseline/tasks.parquet"


def cell_files(model):
    """What the summary reads of each cell of a model."""
    return CELL_FILES + (TASK_FILES if answers_tasks(model) else [])


def compared_files(wildcards):
    """What the budget is judged on: the finished cells of the default run's models."""
    records = [*(f"{stage}.json" for stage in CELL_RECORDS), *REPORTED_FILES]
    models = [SimpleNamespace(model=model) for model in models_of_default_run()]
    return [file for model in models for file in finished_files(model, records)]


def earlier_run(wildcards):
    """The summaries of the earlier run that the budget compares with."""
    against = config["budget"]["against"]
    files = [against, *(f"{against}/{model}/summary.json" for model in models_of_default_run())] if against else []
    return [file for file in files if os.path.isfile(file)]
