"""The workflow's own tidiness, and stages as programs that can be used without Snakemake."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from workflow_project import CELL_STAGES, CHECKOUT, METHODS, evaluation_python

PACKAGE = CHECKOUT / "workflow" / "quantharm"
PROGRAMS = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if "    run_stage(main)" in path.read_text(encoding="utf-8")
)
RULES = sorted((CHECKOUT / "workflow/rules").glob("*.smk"))
STAGES = sorted(
    {name for path in RULES for name in re.findall(r"-m quantharm\.(\w+)", path.read_text(encoding="utf-8"))}
)
HELP_SECONDS = 30  # 3 to 5 on a quiet machine, nearly all of it the import of torch


def tool(name: str, *arguments: str) -> subprocess.CompletedProcess:
    path = Path(sys.executable).parent / name
    if not path.is_file():
        pytest.skip(f"{path} does not exist: run the tests in the workflow environment (envs/workflow.txt)")
    return subprocess.run([path, *arguments], cwd=CHECKOUT, capture_output=True, text=True)


def test_snakemake_lint(shipped):
    result = shipped.snakemake("--lint")
    assert result.code == 0, result.output
    assert "Congratulations" in result.output


def test_snakefmt():
    result = tool("snakefmt", "--check", "Snakefile", "workflow/rules")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "arguments", [("check", "--output-format=concise"), ("format", "--check", "--output-format=concise")]
)
def test_ruff(arguments):
    result = tool("ruff", *arguments, "workflow", "tests")
    assert result.returncode == 0, result.stdout


@pytest.fixture(scope="module")
def helps() -> dict[str, subprocess.CompletedProcess]:
    python = evaluation_python()
    environment = os.environ | {
        "PYTHONPATH": str(CHECKOUT / "workflow"),
        "OMP_WAIT_POLICY": "passive",
        "COLUMNS": "120",
    }

    def ask(stage: str) -> subprocess.CompletedProcess:
        command = [python, "-m", f"quantharm.{stage}", "--help"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HELP_SECONDS)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(PROGRAMS, pool.map(ask, PROGRAMS), strict=True))


@pytest.mark.parametrize("stage", PROGRAMS)
def test_help(helps, stage):
    result = helps[stage]
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"usage: {stage.rpartition('.')[2]}.py") or "usage: " in result.stdout
    docstring = re.search(
        r'"""(.+)', PACKAGE.joinpath(*stage.split(".")).with_suffix(".py").read_text(encoding="utf-8")
    )[1]
    assert docstring.removesuffix('"""') in result.stdout  # what it does, in its own words
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("stage", STAGES)
def test_rules_use_flags_that_the_stage_knows(helps, stage):
    commands = [
        command
        for path in RULES
        for command in re.findall(r"shell:\n(.*?)(?=\n\n\n|\Z)", path.read_text(encoding="utf-8"), re.S)
        if f"quantharm.{stage} " in command or f'quantharm.{stage}"' in command
    ]
    assert commands, f"no rule runs {stage}"
    for command in commands:
        for flag in re.findall(r"(--[a-z][a-z-]*) ", command):
            assert re.search(rf"{flag}\b", helps[stage].stdout), flag


def test_a_rule_a_stage():
    """Rule, module and log folder carry one name."""
    names = {name for path in RULES for name in re.findall(r"^rule (\w+):", path.read_text(encoding="utf-8"), re.M)}
    assert set(STAGES) <= names
    assert set(STAGES) <= set(PROGRAMS)
    for path in RULES:
        for name, body in re.findall(r"^rule (\w+):(.*?)(?=^rule |\Z)", path.read_text(encoding="utf-8"), re.M | re.S):
            if "shell:" not in body:  # a target: names files and runs nothing
                continue
            log = re.search(r'log:\n\s+"results/logs/([^"]+)"', body)
            assert log, f"{name} has no log"
            assert re.split(r"[/.]", log[1])[0] in name


@pytest.mark.parametrize("content", [None, "", "damaged"])
def test_the_table_of_times_needs_finished_jobs_and_says_so(tmp_path, content):
    """As `make timing` calls it: no results folder, an empty one, one with a damaged record."""
    results = tmp_path / "results"
    if content is not None:
        (results / "reference/nf4").mkdir(parents=True)
    if content:
        (results / "reference/nf4/perplexity.json").write_text('{"timing"', encoding="utf-8")
    script = CHECKOUT / "tests/benchmark/stage_times.py"
    run = subprocess.run([sys.executable, script, results], capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.startswith(f"error: {results}")
    assert run.stderr.count("\n") == 1
    assert "is damaged" in run.stderr if content else "holds no finished model job; run the workflow" in run.stderr


def test_the_table_of_times_has_a_line_a_stage(first_run):
    script = CHECKOUT / "tests/benchmark/stage_times.py"
    run = subprocess.run([sys.executable, script, first_run[0] / "results"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    cells = dict(line.split()[:2] for line in run.stdout.splitlines())
    jobs = {"logits": "1"} | dict.fromkeys(CELL_STAGES, str(len(METHODS)))
    assert jobs.items() <= cells.items()


def test_the_table_of_faults_names_tests_that_exist():
    """tests/README.md: `folder/file::begin_of_a_name_…`, `::another_of_that_file`; `test_` left out of both."""
    tests, missing, found = CHECKOUT / "tests", [], 0
    for line in (tests / "README.md").read_text(encoding="utf-8").splitlines():
        file = None
        for reference in re.findall(r"`((?:\w+/\w+)?(?:::\w+…?)?)`", line.rpartition(" | ")[2] or line):
            place, _, name = reference.partition("::")
            file = place or file
            folder, _, module = file.partition("/")
            path = tests / folder / f"test_{module}.py"
            end = r"\w*" if name.endswith("…") else ""
            pattern = rf"^def test_{name.removesuffix('…')}{end}\(" if name else "^def test_"
            found += 1
            if not path.is_file() or not re.search(pattern, path.read_text(encoding="utf-8"), re.M):
                missing.append(reference)
    assert missing == []
    assert found > 60
