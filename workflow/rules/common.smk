# Shared by the rules: the interpreter of a job, the modules that it is made of, its protocol, its resources.
import atexit
import os
import re
import shlex
import shutil
import sys
import tempfile

from quantharm.common import warm_start
from quantharm.config import derived_methods, engines, methods, names, resources
from quantharm.config.commands import command
from quantharm.config.dependencies import module_files

CONDA = any(method.name == "CONDA" for method in workflow.deployment_settings.deployment_method)
OWN_PYTHON = config["python"] is None and not CONDA
ENVIRONMENT = [".venv-evaluation/installed.txt"] if OWN_PYTHON else []
MOST_THREADS = config["threads"]
PYTHON = ".venv-evaluation/bin/python" if OWN_PYTHON else config["python"] or "python"

# Every stage but those that fetch sets itself offline. A PYTHONPATH that is set already is kept, after our own, but for
# empty entries: they stand for this folder, and a `random.py` here is no library of a stage. Assertions stay on, those
# of libraries too: some guard figures. Logs are UTF-8 in every locale.
# OpenMP threads that wait must not spin: where other programs use the cores, spinning makes a small model 50 times
# slower. Compiled modules are kept, though containers like to forbid it: torch and transformers compiled at each start
# cost 10 seconds. glibc keeps freed memory: returning it and faulting it in again doubles the time of a small model.
# A killed stage cannot say so itself: its shell does, and Snakemake then names the rule and the log. (It stands in the
# environment, because Snakemake prints the whole command of a failed job.)
os.environ.update(
    PYTHONPATH=os.pathsep.join(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))),
    PYTHONSAFEPATH="1",
    PYTHONUTF8="1",
    PYTHONIOENCODING="utf-8",
    KILLED="error: this job was killed (signal 9), most often because memory ran out; free some, or give the model's"
    " jobs more by a larger `billion_parameters:` in the config, then run the same command again",
)
shell.prefix(
    "set -euo pipefail; unset PYTHONDONTWRITEBYTECODE PYTHONOPTIMIZE;"
    " trap 'test $? -ne 137 || echo \"$KILLED\" >&2' EXIT;"
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
    os.environ[warm_start.PATH_VARIABLE] = os.environ.get("PYTHONPATH", "")


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
