# Shared by the rules: the files that a job reads (of its model, texts, tasks, other jobs), and those of a report.
import json
from pathlib import Path
from types import SimpleNamespace

from quantharm.config import tasks as task_lists
from quantharm.reporting import names as report_names

REPORT_TEMPLATES = sorted(os.path.relpath(path) for path in (PACKAGE / "report" / "templates").iterdir())
REPORTED_FILES = ["generation.parquet", "perplexity.parquet", "divergence.parquet", "checks.json", "integrity.json"]


def text_of(wildcards):
    return f"results/texts/{protocol('text')(wildcards)}.txt"


prompts_of = protocol("prompts")


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
