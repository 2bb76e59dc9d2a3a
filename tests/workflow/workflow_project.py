"""A working copy of the project in a folder of its own, and Snakemake in it as a user would call it."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from forks import ForkServer
from limits import HUNG_SECONDS

CHECKOUT = Path(__file__).resolve().parents[2]
PARTS = ("Snakefile", "config.yaml", "README.md", "pyproject.toml", "workflow", "profiles", "envs", "data")
METHODS = ("baseline", "int8", "nf4", "awq")
TEST_PROMPTS = "data/test-prompts.jsonl"
PYTHON = "./evaluation-python"  # relative, so that a finished copy stays finished wherever it lies
HALF_WAY = Path(__file__).with_name("half_way")  # a module that every Python of a run loads first
FAIL = Path("fail")  # a line is a part of a command line; the wrapper refuses those that contain one
LINKED = (".safetensors", ".parquet")  # large, and only ever replaced as a whole
SHORT = {
    "text": "builtin",
    "window_tokens": 256,
    "windows": 4,  # 1,020 positions: over fewer, the check `consistency` sees mostly noise
    "prompts": TEST_PROMPTS,
    "prompts_per_category": 1,
    "max_new_tokens": 4,
    "chat_template": "auto",
    "benchmark": {"prompt_tokens": 16, "prefill_tokens": [32], "new_tokens": 4, "repetitions": 2, "seconds": 0},
}
WRAPPER = """#!/bin/sh
# The evaluation interpreter, except for the commands that a test wants to fail.
if [ -f {fail} ]; then
    while read -r part || [ "$part" ]; do
        case "$*" in *"$part"*) echo "error: made to fail" >&2; exit 1 ;; esac
    done < {fail}
fi
exec {python} "$@"
"""


# What a fork server of stages imports, and what torch, OpenMP and the hub's client read as they are imported.
MODEL_LIBRARIES = [
    "torch",
    "transformers.models.mistral.modeling_mistral",
    "transformers.generation",
    "transformers.integrations.bitsandbytes",
    "bitsandbytes",
    "accelerate",
    "pandas",
    "scipy.stats",
    "altair",
    "vl_convert",
]
STAGE_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # as Snakemake sets it for a job of one thread
    "OMP_WAIT_POLICY": "passive",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def evaluation_python() -> str:
    """The interpreter of the evaluation environment; skips the test where there is none."""
    named = os.environ.get("QUANTHARM_PYTHON")
    path = Path(named) if named else CHECKOUT / ".venv-evaluation" / "bin" / "python"
    if not path.is_file():
        pytest.skip(f"no evaluation environment: {path} does not exist; set QUANTHARM_PYTHON to its interpreter")
    return str(path)


def copy_file(source: str, target: str) -> str:
    """Large files as hard links, others as copies; both keep their times."""
    if source.endswith(LINKED):
        try:
            os.link(source, target)
            return target
        except OSError:  # another file system
            pass
    return shutil.copy2(source, target)


def copy_tree(source: Path, target: Path) -> None:
    unwanted = shutil.ignore_patterns("__pycache__", "*.pyc", ".ruff_cache", "log", "locks")
    shutil.copytree(source, target, copy_function=copy_file, ignore=unwanted, dirs_exist_ok=True)


@dataclass
class Result:
    """How a run of Snakemake ended."""

    code: int
    output: str

    @property
    def lines(self) -> list[str]:
        return self.output.splitlines()


class Project:
    """A copy of the project; every method runs in it and leaves the checkout alone."""

    def __init__(self, folder: Path, forks: ForkServer | None = None):
        self.folder = folder
        self.forks = forks  # of Snakemake; without, each call starts an interpreter, as a user's does

    @classmethod
    def fresh(cls, folder: Path, forks: ForkServer | None = None) -> "Project":
        """The project as it is shipped, nothing run yet."""
        folder.mkdir(parents=True, exist_ok=True)
        for part in PARTS:
            if (CHECKOUT / part).is_dir():
                copy_tree(CHECKOUT / part, folder / part)
            else:
                copy_file(str(CHECKOUT / part), str(folder / part))
        return cls(folder, forks)

    def copy(self, folder: Path) -> "Project":
        copy_tree(self.folder, folder)
        return Project(folder, self.forks)

    def __truediv__(self, path: str | Path) -> Path:
        return self.folder / path

    def path(self, path: str) -> Path:
        return self.folder / "results" / "reference" / path

    def read(self, path: str) -> Any:
        """A JSON file of the reference model's results."""
        return json.loads(self.path(path).read_text(encoding="utf-8"))

    def config(self) -> dict[str, Any]:
        return yaml.safe_load((self / "config.yaml").read_text(encoding="utf-8"))

    def write_config(self, config: dict[str, Any]) -> None:
        (self / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")

    def edit(self, key: str, value: Any) -> None:
        """Set `a.b.c` in config.yaml; None in the place of a parent is an error, `...` deletes the key."""
        config = self.config()
        *parents, last = key.split("/")
        section = config
        for parent in parents:
            section = section.setdefault(parent, {})
        if value is ...:
            del section[last]
        else:
            section[last] = value
        self.write_config(config)

    def shorten(self) -> None:
        """The protocol `tiny`, one thread a job so that jobs run side by side, and the wrapper as interpreter."""
        config = self.config()
        config["protocols"]["tiny"] = SHORT
        config["models"]["reference"]["protocol"] = "tiny"
        config["methods"]["awq"] |= {"calibration_samples": 4, "calibration_tokens": 64}
        config |= {"python": PYTHON, "threads": 1, "device": "cpu"}
        self.write_config(config)
        suite = [json.loads(x) for x in (self / "data/prompts.jsonl").read_text(encoding="utf-8").splitlines() if x]
        categories = list(dict.fromkeys(prompt["category"] for prompt in suite))
        chosen = [next(p for p in suite if p["category"] == category) for category in categories[:3]]
        chosen.append([p for p in suite if p["category"] == categories[0]][1])  # left out: one prompt a category
        lines = [json.dumps(prompt, ensure_ascii=False) for prompt in chosen]
        (self / TEST_PROMPTS).write_text("\n".join(lines) + "\n", encoding="utf-8")

    def use_python(self, python: str) -> None:
        """The program of the stages; a fork server's command serves as well as an interpreter."""
        wrapper = self / PYTHON
        wrapper.write_text(WRAPPER.format(fail=FAIL, python=python), encoding="utf-8")
        wrapper.chmod(0o755)

    def command(self, *arguments: str, cores: int = 2) -> list[str]:
        return [sys.executable, "-m", "snakemake", "--cores", str(cores), *arguments]

    def forked_command(self, *arguments: str, cores: int = 2) -> list[str]:
        command = self.command(*arguments, cores=cores)
        return [*self.forks.program, *command[1:]] if self.forks else command

    def environment(self) -> dict[str, str]:
        # Snakemake keeps caches in the user's folders; nothing here may depend on what is in them.
        own = {"OMP_WAIT_POLICY": "passive", "XDG_CACHE_HOME": str(self.folder.parent / ".cache")}
        return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | own

    def snakemake(self, *arguments: str, cores: int = 2) -> Result:
        done = subprocess.run(
            self.forked_command(*arguments, cores=cores),
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=HUNG_SECONDS,
        )
        return Result(done.returncode, done.stdout)

    def start(self, *arguments: str) -> subprocess.Popen:
        """A run in the background; what it says goes to `output.txt`."""
        with open(self / "output.txt", "w", encoding="utf-8") as output:
            return subprocess.Popen(
                self.command(*arguments, "--quiet", "host", "reason"),
                cwd=self.folder,
                env=self.environment(),
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def run(self, *arguments: str, cores: int = 2) -> Result:
        """A real run that has to succeed."""
        result = self.snakemake(*arguments, "--quiet", "host", "reason", cores=cores)
        assert result.code == 0, result.output[-6000:]
        return result

    def jobs(self, *arguments: str, cores: int = 2) -> set[str]:
        """What a run would do: `stage`, `stage model` or `stage model method` of each job."""
        result = self.snakemake("--dry-run", *arguments, cores=cores)
        assert result.code == 0, result.output[-6000:]
        return jobs_of(result.output)


def half_way(project: Project, monkeypatch: pytest.MonkeyPatch, **plan: Any) -> None:
    """Stages of the runs that follow die or stop half-way; `plan` is described in half_way/sitecustomize.py."""
    environment = project.environment() | {"PYTHONPATH": str(HALF_WAY), "QUANTHARM_HALF_WAY": json.dumps(plan)}
    monkeypatch.setattr(project, "environment", lambda: environment)


# The jobs as their messages name them. A stage that is added to the workflow is added here, once.
CELL_STAGES = ("quantize", "generation", "perplexity", "divergence", "integrity", "checks")
FETCH, SUMMARY, REPORT = "reference: fetch", "reference: summary", "reference: report"
LOGITS, TEXT, ALL_MODELS = "reference: the baseline's logits", "builtin: fetch the text", "summary of all models"
ALL_REPORT = "report over all models"
ALL = {ALL_MODELS, ALL_REPORT}
ENDS = {SUMMARY, REPORT} | ALL


def job(method: str, stage: str, model: str = "reference") -> str:
    return f"{model} × {method}: {stage}"


def cell(method: str, model: str = "reference") -> set[str]:
    """The jobs of one cell."""
    return {job(method, stage, model) for stage in CELL_STAGES}


def everything(model: str = "reference", methods: tuple[str, ...] = METHODS) -> set[str]:
    """The jobs of one model, from its fetch to its report."""
    own = {f"{model}: {stage}" for stage in ("fetch", "the baseline's logits", "summary", "report")}
    return own | {name for method in methods for name in cell(method, model)}


def direct_followers(name: str) -> set[str]:
    """Jobs of the reference model that read what a job writes: section 4 of the design, written out."""
    everywhere = METHODS
    if name == FETCH:
        return {job(m, "quantize") for m in everywhere}
    if name == TEXT:
        return {LOGITS} | {job(m, stage) for m in everywhere for stage in ("perplexity", "checks")}
    if name == LOGITS:
        return {job(m, stage) for m in everywhere for stage in ("perplexity", "divergence")}
    if name == SUMMARY:
        return {REPORT, ALL_MODELS}
    if name == REPORT:
        return {ALL_REPORT}
    if name in ALL:
        return set()
    method, stage = re.fullmatch(r"reference × (.+): (.+)", name).groups()
    if stage == "checks":
        return {SUMMARY, REPORT}
    if stage == "integrity":
        return {SUMMARY, REPORT} | ({job(m, stage) for m in everywhere[1:]} if method == "baseline" else set())
    followers = {job(method, "checks"), SUMMARY}
    if method == "baseline":
        followers |= {job(m, "checks") for m in everywhere}
    if stage == "perplexity":
        followers.add(job(method, "divergence"))
    if stage in ("quantize", "divergence"):
        followers.add(job(method, "integrity"))
    if stage == "divergence" and method == "baseline":
        followers |= {job(m, "integrity") for m in everywhere}
    if stage == "quantize":
        followers |= {job(method, s) for s in ("generation", "perplexity", "divergence")}
    if stage in ("quantize", "generation") and method == "baseline":
        followers.add(LOGITS)
    return followers


def with_followers(jobs: set[str]) -> set[str]:
    """Jobs, and all that have to run again when they do."""
    reached, waiting = set(), set(jobs)
    while waiting:
        name = waiting.pop()
        reached.add(name)
        waiting |= direct_followers(name) - reached
    return reached


def jobs_of(output: str) -> set[str]:
    """The jobs in the output of a dry run by their messages, without target rules; checked against its table."""
    if "Nothing to be done" in output:
        return set()
    named = re.findall(r"^Job \d+: (.+)$", output, re.MULTILINE)
    jobs = [name for name in named if not name.startswith("finished: ")]  # as target rules say
    table = dict(re.findall(r"^([a-z_]+) +(\d+)$", output, re.MULTILINE))
    assert len(jobs) == len(set(jobs)) == int(table["total"]) - (len(named) - len(jobs)), output[-6000:]
    return set(jobs)


def toy_wheel(folder: Path) -> Path:
    """A wheel of a package `toy` that is one module."""
    wheel = folder / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("toy.py", "answer = 42\n")
        archive.writestr("toy-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
        archive.writestr("toy-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("toy-1.0.dist-info/RECORD", "")
    return wheel
