"""Cards and badges of whole results, by the stage's own command line; metadata as huggingface_hub reads it back."""

import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
import synthetic
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from report_runs import run_module

from quantharm.common.files import read_json, write_json
from quantharm.report import default_thresholds

HUB_TEXT = {"text": "wikitext-2", "source": "Salesforce/wikitext", "revision": "b" * 40}
OWN_TEXT = {"text": "builtin", "source": "data/evaluation.txt", "revision": None}


@pytest.fixture(scope="module")
def alpha(tmp_path_factory) -> Path:
    return synthetic.make_model(tmp_path_factory.mktemp("alpha"), "alpha-7b", ["baseline", "nf4", "bad-int4"])


def make_card(model: Path, method: str, text: dict = HUB_TEXT) -> tuple[ModelCard, str]:
    write_json(model / "text.json", text)
    cell = model / method
    done = run_module(
        "card",
        f"--cell={cell}",
        f"--summary={model / 'summary.json'}",
        f"--text-record={model / 'text.json'}",
        f"--thresholds={json.dumps(default_thresholds())}",
        f"--badge={cell / 'card.svg'}",
        f"--output={cell / 'card.md'}",
    )
    assert done.returncode == 0, done.stderr
    return ModelCard.load(cell / "card.md"), (cell / "card.svg").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def nf4(alpha) -> tuple[ModelCard, str]:
    return make_card(alpha, "nf4")


def row_of(model: Path, method: str) -> dict:
    return next(row for row in read_json(model / "summary.json")["cells"] if row["method"] == method)


def test_the_metadata_are_the_figures_of_the_summary(alpha, nf4):
    card, row = nf4[0], row_of(alpha, "nf4")
    assert card.data.base_model == "synthetic/alpha-7b"
    assert card.data.base_model_relation == "quantized"
    assert card.data.model_name == "alpha-7b nf4"
    found = {result.metric_type: result for result in card.data.eval_results}
    assert found["perplexity"].metric_value == row["perplexity"]
    assert found["perplexity"].metric_args["ci95"] == row["perplexity_ci95"]
    assert found["perplexity"].dataset_type == "Salesforce/wikitext"
    assert found["perplexity"].dataset_revision == "b" * 40
    assert found["perplexity_change_percent"].metric_value == row["perplexity_change_percent"]
    assert found["kl_divergence"].metric_value == row["kl_nats_mean"]
    assert found["top1_agreement"].metric_value == row["top1_agreement"]
    # As the specification has it: one entry a model, a task and a data set each, metrics with type and value.
    written = yaml.safe_load(str(card).split("---\n")[1])["model-index"]
    assert [entry["name"] for entry in written] == ["alpha-7b nf4"]
    assert model_index_to_eval_results(written)[1] == card.data.eval_results
    for result in written[0]["results"]:
        assert result["task"]["type"] == "text-generation"
        assert {"type", "name"} <= result["dataset"].keys()
        assert all({"type", "value", "name"} <= metric.keys() for metric in result["metrics"])


def test_the_text_says_what_was_measured_and_what_was_not(nf4):
    text = nf4[0].text
    assert "![quantharm](card.svg)" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.replace("\\|", "").count("|") == 5 for line in table)
    assert any("Mean KL divergence" in line and "largest in" in line for line in table)
    assert "Tasks: arithmetic" in text
    assert "96 prompts of 12 categories, 8 each" in text
    assert "NVIDIA H200" in text
    assert "Integrity of the checkpoint: a FINDING" in text


def test_the_protocols_hash_is_of_what_was_asked_and_of_nothing_else(alpha, nf4, tmp_path):
    (digest,) = set(re.findall(r"[0-9a-f]{64}", nf4[0].text.split("Protocol sha256")[1]))
    other = synthetic.make_model(tmp_path, "beta-4b", ["baseline", "nf4"])
    assert digest in make_card(other, "nf4")[0].text  # another model, asked the same
    record = read_json(other / "nf4" / "generation.json")
    write_json(other / "nf4" / "generation.json", record | {"max_new_tokens": 101})
    assert digest not in make_card(other, "nf4")[0].text


def test_a_speed_that_was_timed_beside_other_programs_says_so(alpha, tmp_path):
    model = tmp_path / "alpha-7b"
    shutil.copytree(alpha, model)
    assert "Other programs had" not in make_card(model, "nf4")[0].text
    record = read_json(model / "nf4" / "generation.json")
    record["benchmark"]["processor_wait_share"] = 0.12
    write_json(model / "nf4" / "generation.json", record)
    assert "Other programs had its processors 12\u00a0% of the time." in make_card(model, "nf4")[0].text


def test_what_failed_a_check_has_no_metadata_and_says_so(alpha):
    card, badge = make_card(alpha, "bad-int4")
    assert card.data.eval_results is None
    assert "do not believe these figures" in card.text
    assert "failed checks" in badge


def test_a_model_of_this_disk_has_no_base_model_and_a_text_of_its_own(alpha, tmp_path):
    model = tmp_path / "alpha-7b"
    shutil.copytree(alpha, model)
    record = read_json(model / "summary.json")
    for row in record["cells"]:
        row |= {"source": "../models/a|b <c>", "revision": None}
    write_json(model / "summary.json", record)
    card, _ = make_card(model, "nf4", OWN_TEXT)
    assert card.data.base_model is None
    of_tasks = {"arithmetic", "own|letters <b>"}
    assert {r.dataset_type for r in card.data.eval_results} == {"builtin", "quantharm-prompts"} | of_tasks
    assert "a\\|b \\<c\\>" in card.text


def test_tasks_are_lines_and_results(alpha, tmp_path):
    model = tmp_path / "alpha-7b"
    shutil.copytree(alpha, model)
    record = read_json(model / "summary.json")
    task = {
        "items": 300,
        "accuracy": 0.5,
        "accuracy_ci95": [0.44, 0.56],
        "baseline_accuracy": 0.52,
        "metric": "acc,none",
    }
    task |= {"recovery": 0.96, "recovery_ci95": [0.9, 1.02], "few_shot": 0, "limit": None, "prompts_sha256": "p"}
    for row in record["cells"]:
        row["tasks"] = {"endings": task}
    write_json(model / "summary.json", record)
    card, _ = make_card(model, "nf4")
    assert "Accuracy in endings, 300 items" in card.text
    assert "No task was run" not in card.text
    accuracy = next(r for r in card.data.eval_results if r.metric_type == "accuracy")
    assert (accuracy.dataset_name, accuracy.metric_value, accuracy.metric_args["recovery"]) == ("endings", 0.5, 0.96)


def test_the_badge_needs_nothing_from_elsewhere(nf4):
    root = ElementTree.fromstring(nf4[1])
    assert root.get("aria-label").startswith("quantharm nf4: KL ")
    assert "http" not in nf4[1].replace("http://www.w3.org/2000/svg", "")
    assert not {"script", "image", "style", "foreignObject"} & {element.tag.split("}")[1] for element in root.iter()}
