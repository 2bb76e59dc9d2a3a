"""What runs again after a change, to the job: dry runs on the finished project."""

import re
import shutil
from pathlib import Path

import pytest
from workflow_project import (
    ALL,
    ALL_MODELS,
    ALL_REPORT,
    CELL_STAGES,
    CHECKOUT,
    ENDS,
    FETCH,
    LOGITS,
    METHODS,
    REPORT,
    SUMMARY,
    TEXT,
    cell,
    everything,
    job,
    with_followers,
)

from quantharm.config.resources import host_has_gpu

PACKAGE = CHECKOUT / "workflow" / "quantharm"
# The module of each job that is not a cell's: {job: modules}.
OTHER_MODULES = {
    FETCH: ["fetch"],
    TEXT: ["fetch_text"],
    LOGITS: ["logits", "quantizers.unquantized"],
    SUMMARY: ["summary"],
    ALL_MODELS: ["summary"],
    ALL_REPORT: ["report"],
    REPORT: ["report"],
}
IMPORT = re.compile(r"^\s*(?:from\s+quantharm(\.[\w.]+)?\s+import\s+\(?([^#()\n]*)|import\s+quantharm\.([\w.]+))", re.M)


def path_of(module: str):
    path = PACKAGE.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def closure(modules: list[str]) -> set[str]:
    """Files that modules are made of, by a search for import lines: not the workflow's own way of finding them."""
    files, waiting = set(), list(modules)
    while waiting:
        path = path_of(waiting.pop())
        name = str(path.relative_to(PACKAGE))
        if name in files or not path.is_file():
            continue
        files.add(name)
        waiting += [".".join(folder.parts) for folder in Path(name).parents if folder.parts]
        text = re.sub(r"^if TYPE_CHECKING:\n(?:    .*\n)+", "", path.read_text(encoding="utf-8"), flags=re.M)
        text = re.sub(r"\(\s*\n([^()]*)\)", lambda m: " ".join(m[1].split()), text)
        for package, names, module in IMPORT.findall(text):
            inside = (package or module).strip(".")
            waiting += [inside] if inside else []
            imported = [word.split()[0] for word in names.split(",") if word.split()]
            waiting += [f"{inside}.{word}".strip(".") for word in imported]
    return files


def quantizer_of(project, method: str) -> str:
    return project.config()["methods"][method]["quantizer"]


def jobs_made_of(project, file: str) -> set[str]:
    """Jobs whose module, or whose cell's quantizer, is made of a file of the package."""
    jobs = {name for name, modules in OTHER_MODULES.items() if file in closure(modules)}
    for method in METHODS:
        for stage in CELL_STAGES:
            if file in closure([stage, f"quantizers.{quantizer_of(project, method)}"]):
                jobs.add(job(method, stage))
    return jobs


def append_comment(path) -> None:
    with open(path, "a", encoding="utf-8") as stream:
        stream.write("\n# a comment\n")


def test_a_second_run_does_nothing(finished):
    result = finished.snakemake()
    assert result.code == 0
    assert "Nothing to be done" in result.output
    assert finished.jobs() == set()


@pytest.mark.parametrize("method", ["nf4", "baseline"])
@pytest.mark.parametrize("stage", CELL_STAGES)
def test_a_deleted_result_is_made_again_with_what_depends_on_it(finished, method, stage):
    name = "quantization" if stage == "quantize" else stage
    finished.path(f"{method}/{name}.json").unlink()
    assert finished.jobs() == with_followers({job(method, stage)})


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("reference/source.json", FETCH),
        ("reference/baseline/logits.json", LOGITS),
        ("reference/nf4/generation.parquet", job("nf4", "generation")),
        ("reference/summary.json", SUMMARY),
        ("reference/EVALUATION_SUMMARY.md", REPORT),
        ("summary.parquet", ALL_MODELS),
    ],
)
def test_other_deleted_results(finished, path, name):
    (finished / "results" / path).unlink()
    assert finished.jobs() == with_followers({name})


def test_a_deleted_cell(finished):
    shutil.rmtree(finished.path("int8"))
    assert finished.jobs() == with_followers({job("int8", "quantize")})


def test_large_files_may_be_deleted_until_something_needs_them(finished):
    shutil.rmtree(finished.path("int8/checkpoint"))
    finished.path("baseline/logits.parquet").unlink()
    assert finished.jobs() == set()
    finished.path("int8/perplexity.json").unlink()
    assert finished.jobs() == with_followers({job("int8", "quantize"), LOGITS})


def test_a_methods_settings_touch_that_method_alone(finished):
    finished.edit("methods/nf4/double_quantization", False)
    assert finished.jobs() == cell("nf4") | ENDS


def test_a_protocols_settings_touch_its_stage_alone(finished):
    finished.edit("protocols/tiny/windows", 3)  # the store holds these windows as well
    assert finished.jobs() == with_followers({LOGITS, *(job(method, "perplexity") for method in METHODS)})


def test_another_protocol_than_the_models_touches_nothing(finished):
    finished.edit("protocols/full/max_new_tokens", 50)
    finished.edit("protocols/quick/window_tokens", 512)
    assert finished.jobs() == set()


def test_a_description_touches_nothing(finished):
    finished.edit("methods/nf4/description", "a line for the report")
    assert finished.jobs() <= ENDS


def test_a_new_method_touches_no_finished_cell(finished):
    finished.edit("methods/fp4", {"quantizer": "bitsandbytes_4bit", "quant_type": "fp4"})
    assert finished.jobs() == set()  # known, but not chosen
    finished.edit("evaluate/methods", [*METHODS, "fp4"])
    assert finished.jobs() == cell("fp4") | ENDS


def test_a_method_taken_out_touches_no_finished_cell(finished):
    finished.edit("evaluate/methods", ["baseline", "nf4"])
    assert finished.jobs() <= ENDS


def test_a_new_model_touches_no_finished_cell(finished):
    finished.edit("models/other", {"source": "data/reference-model", "protocol": "tiny"})
    assert finished.jobs() == set()
    finished.edit("evaluate/models", ["reference", "other"])
    assert finished.jobs() == everything("other") | ALL


def test_an_edited_calibration_text_touches_the_methods_that_use_one(finished):
    with open(finished / "data/calibration.txt", "a", encoding="utf-8") as stream:
        stream.write("\nAnother line.\n")
    assert finished.jobs() == cell("awq") | ENDS


def test_edited_prompts(finished):
    with open(finished / "data/test-prompts.jsonl", "a", encoding="utf-8") as stream:
        stream.write('{"id": "new-1", "category": "New", "prompt": "Say something new."}\n')
    changed = {job(method, "generation") for method in METHODS} | {job(method, "checks") for method in METHODS}
    assert finished.jobs() == with_followers(changed)


def test_an_edit_of_the_readme_touches_nothing(finished):
    append_comment(finished / "README.md")
    assert finished.jobs() == set()


@pytest.mark.parametrize(
    "file",
    [
        "common/statistics.py",
        "common/__init__.py",
        "scoring/forward.py",
        "common/overlap.py",
        "summary.py",
        "report.py",
        "fetch.py",
        "speed/decoding.py",
        "config/resources.py",
    ],
)
def test_an_edited_module_touches_the_stages_that_import_it(finished, file):
    append_comment(finished / "workflow/quantharm" / file)
    assert finished.jobs() == with_followers(jobs_made_of(finished, file))


def test_the_search_for_imports_finds_something(finished):
    """Guards the test above against comparing nothing with nothing."""
    assert job("nf4", "perplexity") in jobs_made_of(finished, "common/statistics.py")
    assert job("nf4", "quantize") not in jobs_made_of(finished, "common/statistics.py")
    assert jobs_made_of(finished, "common/overlap.py") == {job(method, "checks") for method in METHODS}
    assert jobs_made_of(finished, "config/resources.py") == set()
    assert job("nf4", "quantize") in jobs_made_of(finished, "common/files.py")


@pytest.mark.parametrize(
    ("quantizer", "touched"), [("awq", "awq"), ("bitsandbytes_int8", "int8"), ("bitsandbytes_4bit", "nf4")]
)
def test_an_edited_quantizer_touches_its_own_cell_alone(finished, quantizer, touched):
    """Not the baseline's either, from which everything else would follow."""
    file = f"quantizers/{quantizer}.py"
    append_comment(finished / "workflow/quantharm" / file)
    jobs = finished.jobs()
    assert jobs == cell(touched) | ENDS
    assert jobs == with_followers(jobs_made_of(finished, file))


def test_the_baselines_own_module_touches_everything(finished):
    append_comment(finished / "workflow/quantharm/quantizers/unquantized.py")
    assert finished.jobs() == with_followers({job("baseline", stage) for stage in CELL_STAGES} | {LOGITS})


def test_an_edited_python_module_of_the_workflow_itself_touches_nothing(finished):
    """dependencies.py and resources.py decide what runs and where, not what comes out."""
    append_comment(finished / "workflow/quantharm/config/resources.py")
    append_comment(finished / "workflow/quantharm/config/dependencies.py")
    assert finished.jobs() == set()


@pytest.mark.skipif(host_has_gpu(), reason="this host has a GPU, for which its jobs queue")
@pytest.mark.parametrize(("stage", "side_by_side"), [("integrity", True), ("generation", False)])
def test_without_a_gpu_jobs_share_the_cores_except_those_that_are_timed(finished, stage, side_by_side):
    finished.edit("device", "auto")
    records = [finished.path(f"{method}/{stage}.json") for method in ("int8", "nf4")]
    for record in records:
        record.unlink()
    targets = [str(record.relative_to(finished.folder)) for record in records]
    result = finished.run(*targets, "--rerun-triggers", "mtime", "--resources", "gpu=1")
    assert ("Execute 2 jobs" in result.output) is side_by_side
