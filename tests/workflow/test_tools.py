"""The workflow's own tidiness, and stages as programs that can be used without Snakemake."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from limits import HUNG_SECONDS
from workflow_project import CELL_STAGES, CHECKOUT, METHODS

PACKAGE = CHECKOUT / "workflow" / "quantharm"
PROGRAMS = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if "    run_stage(main)" in path.read_text(encoding="utf-8")
)
RULES = sorted((CHECKOUT / "workflow/rules").glob("*.smk"))
STAGES = sorted(
    {name for path in RULES for name in re.findall(r'\*\*command\(\s*"(\w+)"', path.read_text(encoding="utf-8"))}
)


RULE = r"^(?:use rule \w+ as |rule )(\w+)(?: with)?:"


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


def test_mypy():
    result = tool("mypy", "--no-error-summary")
    assert result.returncode == 0, result.stdout


@pytest.fixture(scope="module")
def helps(stages) -> dict[str, subprocess.CompletedProcess]:
    environment = os.environ | {
        "PYTHONPATH": str(CHECKOUT / "workflow"),
        "OMP_WAIT_POLICY": "passive",
        "COLUMNS": "120",
    }

    def ask(stage: str) -> subprocess.CompletedProcess:
        command = [*stages.program, "-m", f"quantharm.{stage}", "--help"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HUNG_SECONDS)

    return {stage: ask(stage) for stage in PROGRAMS}


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
        flags
        for path in RULES
        for name, flags in re.findall(
            r'^        \*\*command\(\n            "(\w+)",\n(.*?)^        \),',
            path.read_text(encoding="utf-8"),
            re.M | re.S,
        )
        if name == stage
    ]
    assert commands, f"no rule runs {stage}"
    for command in commands:
        flags = re.findall(r"^ {12}(\w+)=", command, re.M)
        assert flags
        for flag in flags:
            assert re.search(rf"--{flag.replace('_', '-')}(?![\w-])", helps[stage].stdout), flag


CLOCKS = {"sleep", "time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "process_time"}
LIMIT_NAMES = re.compile(r"(?!HUNG_SECONDS$)\w*(SECONDS|PATIENCE|TIMEOUT|DEADLINE)\w*")
WAITS = {"wait", "join", "communicate", "result"}


def limits_of_their_own(tree: ast.AST) -> Iterator[int]:
    """Lines that read a clock, sleep, or wait no longer than for a number of seconds."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="time"), attr=name) if name in CLOCKS:
                yield node.lineno
            case ast.ImportFrom(module="time"):
                yield node.lineno
            case ast.Assign(targets=[ast.Name(id=name)]) if LIMIT_NAMES.fullmatch(name):
                yield node.lineno
            case ast.keyword(arg="timeout", value=ast.Constant(value=int() | float())):
                yield node.value.lineno
            case ast.Call(func=ast.Attribute(attr=name), args=[ast.Constant(value=int() | float())]) if name in WAITS:
                yield node.lineno


def test_limits_stand_in_one_place():
    """A test that measures time fails on a slow machine, and one that sleeps hopes."""
    tests = CHECKOUT / "tests"
    others = {tests / name for name in ("limits.py", "side_by_side.py", "unit/zoo.py")}  # the last two only print times
    files = [f for f in tests.rglob("*.py") if f not in others and f.parent not in (tests / "benchmark", tests / "gpu")]
    assert len(files) > 50
    limits = {f: list(limits_of_their_own(ast.parse(f.read_text(encoding="utf-8")))) for f in files}
    assert {str(f.relative_to(tests)): lines for f, lines in limits.items() if lines} == {}


@pytest.mark.parametrize(
    "line",
    [
        "time.sleep(1)",
        "from time import sleep",
        "run(x, timeout=20)",
        "process.wait(5)",
        "PATIENCE = 60",
        "LONGEST_SECONDS = 3",
        "assert time.monotonic() - begin < 5",
    ],
)
def test_a_limit_of_its_own_is_seen(line):
    assert list(limits_of_their_own(ast.parse(line))) == [1]


def test_a_rule_a_stage():
    """Rule, module and log folder carry one name."""
    names = {name for path in RULES for name in re.findall(RULE, path.read_text(encoding="utf-8"), re.M)}
    assert set(STAGES) <= names
    assert set(STAGES) <= set(PROGRAMS)
    for path in RULES:
        for name, body in re.findall(
            rf"{RULE}(.*?)(?=^(?:use )?rule |\Z)", path.read_text(encoding="utf-8"), re.M | re.S
        ):
            if "shell:" not in body and "**command(" not in body:  # a target: names files and runs nothing
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


def test_the_table_of_times_has_a_line_a_stage(built_in):
    script = CHECKOUT / "tests/benchmark/stage_times.py"
    run = subprocess.run([sys.executable, script, built_in[0] / "results"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    cells = dict(line.split()[:2] for line in run.stdout.splitlines())
    jobs = {"logits": "1"} | dict.fromkeys(CELL_STAGES, str(len(METHODS)))
    assert jobs.items() <= cells.items()


def test_the_table_of_faults_names_tests_that_exist():
    """tests/README.md: `suite/file::begin_of_a_name_…`, `::another_of_that_file`; rooms and `test_` left out."""
    tests, missing, references = CHECKOUT / "tests", [], 0
    for line in (tests / "README.md").read_text(encoding="utf-8").splitlines():
        file = None
        for reference in re.findall(r"`((?:\w+/\w+)?(?:::\w+…?)?)`", line.rpartition(" | ")[2] or line):
            place, _, name = reference.partition("::")
            file = place or file
            folder, _, module = file.partition("/")
            paths = list((tests / folder).rglob(f"test_{module}.py"))
            end = r"\w*" if name.endswith("…") else ""
            pattern = rf"^def test_{name.removesuffix('…')}{end}\(" if name else "^def test_"
            references += 1
            if len(paths) != 1 or not re.search(pattern, paths[0].read_text(encoding="utf-8"), re.M):
                missing.append(reference)
    assert missing == []
    assert references > 60
