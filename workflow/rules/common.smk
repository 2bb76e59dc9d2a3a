# What the rules ask for: which files a stage is made of, which protocol, how much memory.
import json
import os
import re
import shlex
import sys
from pathlib import Path

from quantharm.config import derived_methods, methods, names, resources
from quantharm.config.dependencies import module_files
from quantharm.reporting import names as report_names

CONDA = any(method.name == "CONDA" for method in workflow.deployment_settings.deployment_method)
OWN_PYTHON = config["python"] is None and not CONDA
ENVIRONMENT = [".venv-evaluation/installed.txt"] if OWN_PYTHON else []
PYTHON = ".venv-evaluation/bin/python" if OWN_PYTHON else config["python"] or "python"

# Every stage but fetch and fetch_text sets itself offline. A PYTHONPATH that is set already is kept, after our own.
# OpenMP threads that wait must not spin: where other programs use the cores, spinning makes a small model 50 times
# slower. Memory that is freed is kept (glibc): to give it back and fault it in again doubles the time of what is small.
# A stage that is killed cannot say so itself: its shell does, and Snakemake then names the rule and the log. (In the
# environment, for Snakemake shows the whole command of whatever fails.)
os.environ.update(
    KILLED="error: this job was killed (signal 9), most often because memory ran out; free some, or give the model's"
    " jobs more by a larger `billion_parameters:` in the config, then run the same command again"
)
shell.prefix(
    "set -euo pipefail; trap 'test $? -ne 137 || echo \"$KILLED\" >&2' EXIT;"
    f" export PYTHONPATH={shlex.quote(str(PACKAGE))}${{{{PYTHONPATH:+:$PYTHONPATH}}}}"
    f" OMP_WAIT_POLICY=passive MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=268435456"
    f" WORKFLOW_PYTHON={shlex.quote(sys.executable)}; "
)


wildcard_constraints:
    model="|".join(map(re.escape, config["models"])),
    method="|".join(map(re.escape, config["methods"])),
    text="|".join(map(re.escape, config["texts"])),


def modules(*names):
    """The files that modules of the package are made of, as paths from the working directory."""
    return [os.path.relpath(path) for path in module_files(*names)]


def package(stage):
    """Input function: the files a stage's module is made of, and its cell's quantizer."""

    def files(wildcards):
        if "method" not in wildcards.keys():
            return modules(stage)
        return modules(stage, f"quantizers.{config['methods'][wildcards.method]['quantizer']}")

    return files


def model_value(key):
    """Parameter function: a key of the model's entry."""
    return lambda wildcards: config["models"][wildcards.model][key]


def protocol(key):
    """Parameter function: a key of the model's protocol, `a.b` for a nested one."""

    def value(wildcards):
        found = config["protocols"][config["models"][wildcards.model]["protocol"]]
        for part in key.split("."):
            found = found[part]
        return found

    return value


def protocol_switch(key):
    """Parameter function: a protocol's true, false or word, as a flag takes it."""
    return lambda wildcards: str(protocol(key)(wildcards)).lower()


def protocol_flag(flag, key):
    """Parameter function: `--flag value`, or nothing where the protocol says null."""

    def text(wildcards):
        value = protocol(key)(wildcards)
        return "" if value is None else f"{flag} {shlex.quote(str(value))}"

    return text


def text_of(wildcards):
    return f"results/texts/{protocol('text')(wildcards)}.txt"


def prompts_of(wildcards):
    return protocol("prompts")(wildcards)


def gpus_of(wildcards):
    """Resource function: the GPUs that a model job asks for; none where everything runs on the CPU."""
    return 0 if config["device"] == "cpu" else model_value("gpus")(wildcards)


def needs(resource, stage):
    """Resource function: grows with the model's size and with each attempt."""
    return lambda wildcards, attempt: getattr(resources, resource)(stage, config["models"][wildcards.model], attempt)


def local_files(source):
    """The files of a model that is a folder here, so that changing one is noticed."""
    folder = Path(source)
    return sorted(str(p) for p in folder.iterdir() if p.is_file()) if folder.is_dir() else []


def is_synthetic(model):
    """Whether a model of the config is a shape to fill with random weights."""
    return isinstance(config["models"][model]["source"], dict)


def source_of(model):
    """A model's folder or hub id; of random weights, the folder that they are written into."""
    return f"results/{model}/synthetic" if is_synthetic(model) else config["models"][model]["source"]


def source_files(wildcards):
    """Input function: the files of a local model, or the folder that is made for one of random weights."""
    source = source_of(wildcards.model)
    return [source] if is_synthetic(wildcards.model) else local_files(source)


def source_flags(entry):
    """The flags that say where a checkpoint is and what it may do."""
    flags = ["--source", entry["source"]]
    flags += ["--revision", entry["revision"]] if entry.get("revision") else []
    flags += [f"--{key.replace('_', '-')}" for key in ("allow_pickle", "trust_remote_code") if entry.get(key)]
    return shlex.join(flags)


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


def signature_of(wildcards):
    """The signed manifest of a model and its signer's key, where the config names them; judged with the baseline."""
    model = config["models"][wildcards.model]
    return [model["signature"], model["public_key"]] if model["signature"] and wildcards.method == "baseline" else []


def records_of_default_run():
    """Targets, so that a record that was deleted is made again although what was made of it is still there.

    Checkpoints and the log-prob store are no targets: they are large, and may be deleted until something needs them.
    """
    models = config["evaluate"]["models"]
    once = [f"results/{model}/{stage}.json" for model in models for stage in ("source", "summary", "baseline/logits")]
    cells = [f"results/{model}/{method}" for model in models for method in methods.methods_of(config, model)]
    return once + [f"{cell}/{file}" for cell in cells for file in [*CELL_FILES, "divergence.parquet"]]


REPORT_TEMPLATES = sorted(os.path.relpath(path) for path in (PACKAGE / "report" / "templates").iterdir())
REPORTED_FILES = ["generation.parquet", "perplexity.parquet", "divergence.parquet", "checks.json", "integrity.json"]


def studies_of(model):
    """{file: time} of the studies beside the default run that have been made."""
    files = [
        f"results/{model}/{name}" for name in ("noise_sweep.json", "calibration_study.json", "monitor/history.parquet")
    ]
    return {file: os.path.getmtime(file) for file in files if os.path.exists(file)}


marked = report  # the flag; a line that starts with its own name would be read as a directive


def figure_files(folder, names, caption, **labels):
    """A report() for each chart as SVG, and its PNG beside it."""
    shown = [
        marked(f"{folder}/figures/{name}.svg", caption=caption, category="Charts", labels=labels | {"chart": title})
        for name, title in names.items()
    ]
    return shown + [f"{folder}/figures/{name}.png" for name in names]


def table_files(folder, names, caption, **labels):
    """A report() for each table as CSV, and its Parquet beside it."""
    shown = [
        marked(f"{folder}/tables/{name}.csv", caption=caption, category="Tables", labels=labels | {"table": title})
        for name, title in names.items()
    ]
    return shown + [f"{folder}/tables/{name}.parquet" for name in names]
