"""Models and methods of the user's own: entries in the config, or only the name of a target."""

import json
import shutil

import pytest
from workflow_project import ALL, METHODS, TEXT, cell, everything

HUB_MODELS = ("phi-3-mini", "mistral-7b-instruct", "qwen2.5-0.5b-instruct")
TASKS = {f"reference × {method}: tasks" for method in METHODS} | {"reference: fetch the tasks' data"}
ENVIRONMENT = "the evaluation environment, from envs/evaluation.txt (once; some minutes)"


@pytest.mark.parametrize("model", HUB_MODELS)
def test_a_model_outside_the_default_run_needs_its_targets_name_alone(shipped, model):
    wikitext = "wikitext-2: fetch the text"
    whole = everything(model) | {wikitext, ENVIRONMENT}
    assert shipped.jobs(f"results/{model}/EVALUATION_SUMMARY.md") == whole
    assert shipped.jobs(f"results/{model}/summary.json") == whole - {f"{model}: report"}


def test_the_default_run(shipped):
    assert shipped.jobs() == everything() | TASKS | {TEXT, ENVIRONMENT} | ALL


def test_another_interpreter_builds_no_environment(shipped):
    assert shipped.jobs("--config", "python=/usr/bin/python3") == everything() | TASKS | {TEXT} | ALL


@pytest.mark.parametrize(
    "arguments", [("--resources", "gpu=1"), ("--resources", "gpu=4", "mem_mb=64000"), ("--keep-going",)]
)
@pytest.mark.parametrize("cores", [1, 8])
def test_cores_and_resources_change_no_job(shipped, arguments, cores):
    assert shipped.jobs(*arguments, cores=cores) == everything() | TASKS | {TEXT, ENVIRONMENT} | ALL


def test_a_model_of_ones_own_by_the_command_line(small, tmp_path):
    shutil.copytree(small / "data/reference-model", tmp_path / "my model")
    entry = json.dumps({"mine": {"source": str(tmp_path / "my model"), "protocol": "tiny"}})
    jobs = small.jobs("results/mine/EVALUATION_SUMMARY.md", "--config", f"models={entry}")
    assert jobs == everything("mine") | {TEXT}


def test_a_method_for_some_models_only(small):
    small.edit("models/other", {"source": "data/reference-model", "protocol": "tiny"})
    small.edit("evaluate/models", ["reference", "other"])
    small.edit("methods/awq/models", ["reference"])
    others = everything("other", ("baseline", "int8", "nf4"))
    assert small.jobs() == everything() | others | {TEXT} | ALL


@pytest.fixture(scope="module")
def own(cheap, tmp_path_factory):
    """A run with a model from a folder elsewhere, and with two checkpoints that somebody else quantized."""
    folder = tmp_path_factory.mktemp("own")
    project = cheap.copy(folder / "project")
    shutil.copytree(project / "data/reference-model", folder / "my model")
    for method in ("nf4", "awq"):
        shutil.copytree(project.path(f"{method}/checkpoint"), folder / f"their-{method}")
        entry = {"quantizer": "pretrained", "source": str(folder / f"their-{method}"), "models": ["reference"]}
        project.edit(f"methods/their-{method}", entry)
        project.edit(f"methods/{method}/models", ["reference"])
    project.edit("methods/int8/models", ["reference"])
    project.edit("evaluate/methods", [*METHODS, "their-nf4", "their-awq"])
    models = json.dumps({"mine": {"source": str(folder / "my model"), "protocol": "tiny"}})
    arguments = ("results/mine/EVALUATION_SUMMARY.md", "results/reference/EVALUATION_SUMMARY.md")
    jobs = project.jobs(*arguments, "--config", f"models={models}")
    project.run(*arguments, "--config", f"models={models}")
    return project, jobs


def test_they_touch_no_finished_cell(own):
    theirs = {f"reference × their-{method}: fetch" for method in ("nf4", "awq")} | cell("their-nf4") | cell("their-awq")
    assert own[1] == everything("mine", ("baseline",)) | theirs | {"reference: summary", "reference: report"}


def test_a_model_from_a_folder_elsewhere_gives_the_same_figures(own):
    mine = json.loads((own[0] / "results/mine/summary.json").read_text(encoding="utf-8"))["cells"]
    reference = own[0].read("summary.json")["cells"]
    assert [row["method"] for row in mine] == ["baseline"]
    for key in ("perplexity", "parameters", "weight_bytes", "succeeded"):
        assert mine[0][key] == reference[0][key]
    assert mine[0]["checks_failed"] == []


@pytest.mark.parametrize("method", ["nf4", "awq"])
def test_a_pretrained_checkpoint_gives_the_figures_of_the_cell_it_comes_from(own, method):
    rows = {row["method"]: row for row in own[0].read("summary.json")["cells"]}
    theirs, ours = rows[f"their-{method}"], rows[method]
    assert theirs["quantizer"] == "pretrained"
    assert theirs["checks_failed"] == []
    for key in ("perplexity", "kl_nats_mean", "top1_agreement"):
        assert theirs[key] == pytest.approx(ours[key], rel=1e-6)
    for key in ("weight_bytes", "bits_per_weight", "quantized_modules", "checkpoint_bytes", "parameters", "correct"):
        assert theirs[key] == ours[key]
