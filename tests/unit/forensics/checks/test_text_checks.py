"""The checks of texts name each difference from the baseline, and each fault of a calibration."""

import pytest

from quantharm.forensics.checks.texts import check_calibration, check_same_text
from quantharm.quantizers.calibration_evidence import calibration_evidence


def results() -> dict:
    provenance = {"device": "CPU: x", "dtype": "bfloat16", "versions": {"torch": "2.13.0"}, "git_commit": "a"}
    return {
        "perplexity": {
            "dataset_sha256": "d",
            "tokens_sha256": "t",
            "protocol": "concat-2048",
            "perplexity": 7.0,
            "provenance": dict(provenance),
        },
        "generation": {
            "suite_sha256": "s",
            "prompts_per_category": None,
            "max_new_tokens": 100,
            "chat_template": "auto",
            "thinking": False,
            "prompt_tokens_sha256": "i",
            "provenance": dict(provenance),
        },
        "divergence": {"trace_sha256": "r", "provenance": dict(provenance)},
    }


def test_same_text_passes_although_figures_differ():
    cell = results()
    cell["perplexity"]["perplexity"] = 8.0
    cell["perplexity"]["provenance"]["git_commit"] = "b"
    check = check_same_text(cell, results())
    assert (check["status"], check["value"]) == ("pass", 0)


@pytest.mark.parametrize(
    ("stage", "key"),
    [
        ("perplexity", "dataset_sha256"),
        ("perplexity", "tokens_sha256"),
        ("perplexity", "protocol"),
        ("generation", "suite_sha256"),
        ("generation", "prompts_per_category"),
        ("generation", "max_new_tokens"),
        ("generation", "chat_template"),
        ("generation", "thinking"),
        ("generation", "prompt_tokens_sha256"),
        ("divergence", "trace_sha256"),
    ],
)
def test_same_text_fails_on_each_key(stage, key):
    cell = results()
    cell[stage][key] = "other"
    check = check_same_text(cell, results())
    assert (check["status"], check["value"]) == ("fail", 1)
    assert key.removesuffix("_sha256") in check["explanation"]


@pytest.mark.parametrize("stage", ["perplexity", "generation", "divergence"])
@pytest.mark.parametrize("key", ["device", "dtype", "versions", "environment"])
def test_same_text_fails_on_each_environment(stage, key):
    cell = results()
    cell[stage]["provenance"][key] = "other"
    check = check_same_text(cell, results())
    assert check["status"] == "fail"
    assert f"{stage} {key}" in check["explanation"]


EVIDENCE = {
    "samples_asked": 4,
    "samples_reached": 4,
    "tokens_asked": 2048,
    "tokens_reached": 2048,
    "duplicate_samples": 0,
    "overlaps": 0,
    "nll_mean_nats": 4.1,
    "text_nll_mean_nats": 4.0,
}


def test_calibration_passes():
    check = check_calibration(EVIDENCE)
    assert (check["status"], check["value"], check["limit"]) == ("pass", 0, 0)
    assert "4 samples and 2048 tokens" in check["explanation"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"samples_reached": 3, "tokens_reached": 1536}, "3 of 4 samples reached"),
        ({"tokens_reached": 2047}, "2047 of 2048 tokens reached"),
        ({"samples_reached": 0, "tokens_reached": 0}, "0 of 4 samples"),
        ({"overlaps": 1}, "shared with the evaluation text or the prompts"),
        ({"duplicate_samples": 3}, "75% of the samples repeat another one"),
        ({"distinct_share_min": 0.01}, "1.0% distinct tokens"),
        ({"nll_mean_nats": 8.1}, "2.02 times"),
        ({"nll_mean_nats": 1.9}, "0.47 times"),
    ],
)
def test_calibration_fails_and_says_why(changes, words):
    check = check_calibration(EVIDENCE | changes)
    assert check["status"] == "fail"
    assert words in check["explanation"]


def test_calibration_is_skipped_for_methods_that_use_none(nf4_cell):
    assert calibration_evidence(nf4_cell.record, None, None, None, {}, "", []) is None
    assert check_calibration(None)["status"] == "skipped"
