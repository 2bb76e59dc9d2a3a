"""Calibration samples: how they are drawn, what is said of them, and whether bad ones are noticed."""

import json
import math

import pytest

from quantharm import calibration_study
from quantharm.common.chat import Asking
from quantharm.common.errors import UserError
from quantharm.common.text import read_text, sha256_of_windows
from quantharm.quantizers import awq, calibration
from quantharm.quantizers.calibration_evidence import calibration_evidence
from quantharm.quantizers.calibration_samples import pack_calibration
from quantharm.reporting.charts.studies import calibration_chart
from quantharm.scoring import forward

SETTINGS = {
    "calibration_samples": 6,
    "calibration_tokens": 128,
    "calibration_seed": None,
    "calibration_corruption": None,
}
CELL = {"perplexity": {"nll_mean_nats": math.log(51.7)}, "generation": {"chat_template": "auto"}}


@pytest.fixture(scope="module")
def text(root) -> str:
    return read_text(root / "data/calibration.txt")


@pytest.fixture(scope="module")
def evidence(reference_model, reference_source, reference_tokenizer, root, suite, evaluation_text):
    """evidence(settings, path, evaluation): of a cell that was calibrated as the settings say."""
    head = forward.output_head(reference_model)

    def make(settings, path=root / "data/calibration.txt", evaluation=evaluation_text):
        samples = awq.calibration_samples(reference_tokenizer, read_text(path), settings)
        record = {
            "method": "awq",
            "quantizer": "awq",
            "settings": settings,
            "calibration": {
                "file": str(path),
                "samples_asked": settings["calibration_samples"],
                "samples_reached": len(samples),
                "tokens_asked": settings["calibration_samples"] * settings["calibration_tokens"],
                "tokens_reached": sum(map(len, samples)),
                "tokens_sha256": sha256_of_windows(samples),
                **calibration.sample_statistics(samples),
            },
        }
        return calibration_evidence(record, reference_model, head, reference_tokenizer, CELL, evaluation, suite)

    return make


# ---------------------------------------------------------------- drawing


def test_samples_are_drawn_by_seed(reference_tokenizer, text):
    first = awq.calibration_samples(reference_tokenizer, text, SETTINGS)
    assert first == pack_calibration(reference_tokenizer, text, 6, 128)
    drawn = [awq.calibration_samples(reference_tokenizer, text, SETTINGS | {"calibration_seed": s}) for s in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    everything = pack_calibration(reference_tokenizer, text, 10_000, 128)
    assert all(sample in everything for sample in drawn[0])
    assert len({tuple(sample) for sample in drawn[0]}) == 6
    many = SETTINGS | {"calibration_seed": 1, "calibration_samples": 10_000}
    assert sorted(awq.calibration_samples(reference_tokenizer, text, many)) == sorted(everything)


def test_bad_samples_are_what_they_are_called(reference_tokenizer, text):
    random = awq.calibration_samples(reference_tokenizer, text, SETTINGS | {"calibration_corruption": "random_tokens"})
    assert [len(sample) for sample in random] == [128] * 6
    assert len({token for sample in random for token in sample}) > 600  # of 768 draws
    one = awq.calibration_samples(reference_tokenizer, text, SETTINGS | {"calibration_corruption": "repeated_token"})
    assert [len(sample) for sample in one] == [128] * 6
    assert len({token for sample in one for token in sample}) == 1


# ---------------------------------------------------------------- figures


def test_statistics_by_hand():
    statistics = calibration.sample_statistics([[1, 1, 2, 3], [1, 1, 2, 3], [1, 2, 1, 3]])
    assert statistics["duplicate_samples"] == 1
    assert (statistics["sample_tokens_min"], statistics["sample_tokens_max"], statistics["distinct_tokens"]) == (
        4,
        4,
        3,
    )
    assert statistics["distinct_share_min"] == 0.75
    assert statistics["unigram_entropy_bits"] == pytest.approx(1.5)  # 1/2, 1/4, 1/4


def test_coverage_by_hand():
    assert calibration.coverage([[1, 2], [3]], [1, 1, 4, 3]) == 0.75
    assert calibration.coverage([[1]], []) is None


def test_prompts_and_template_are_covered_or_not(byte_tokenizer):
    template = "{% for m in messages %}<u>{{ m['content'] }}</u>{% endfor %}"
    tokenizer = byte_tokenizer(template=template)
    ids = tokenizer("abc", add_special_tokens=False)["input_ids"]
    prompts = [{"category": "A", "prompt": "abab"}, {"category": "B", "prompt": "abzz"}]
    coverage = calibration.prompt_coverage([ids], tokenizer, prompts, Asking())
    assert coverage["coverage_by_category"] == {"A": 1.0, "B": 0.5}
    assert coverage["template_coverage"] == 0.0  # none of <u></u>
    with_frame = [*ids, *tokenizer("<u>/", add_special_tokens=False)["input_ids"]]
    assert calibration.prompt_coverage([with_frame], tokenizer, prompts, Asking())["template_coverage"] == 1.0
    assert calibration.prompt_coverage([ids], byte_tokenizer(), prompts, Asking())["template_coverage"] is None


# ---------------------------------------------------------------- what is noticed


def test_the_shipped_calibration_has_no_fault(evidence):
    shipped = evidence(SETTINGS)
    assert calibration.faults(shipped) == []
    assert 0.7 < shipped["nll_mean_nats"] / shipped["text_nll_mean_nats"] < 1.4
    assert min(shipped["coverage_by_category"].values()) > 0.2


@pytest.mark.parametrize(
    ("corruption", "words"),
    [
        ("random_tokens", ["not natural text"]),
        ("repeated_token", ["83% of the samples repeat another one", "0.8% distinct tokens"]),
    ],
)
def test_bad_samples_are_noticed(evidence, corruption, words):
    faults = calibration.faults(evidence(SETTINGS | {"calibration_corruption": corruption}))
    for word in words:
        assert any(word in fault for fault in faults), faults


def test_overlap_with_the_evaluation_text_is_noticed(evidence, text):
    words = text.split()[50:63]  # 13 words
    shared = "Intro. " + " ".join(words).upper() + " end"
    assert any("shared" in fault for fault in calibration.faults(evidence(SETTINGS, evaluation=shared)))
    assert calibration.faults(evidence(SETTINGS, evaluation=" ".join(words[:-1]))) == []


def test_a_text_too_short_for_the_samples_is_noticed(evidence, tmp_path, text):
    path = tmp_path / "short.txt"
    path.write_text(text[:2000])
    assert any("of 6 samples reached" in fault for fault in calibration.faults(evidence(SETTINGS, path)))


def test_a_calibration_text_that_changed_is_refused(reference_model, reference_tokenizer, root, suite, evaluation_text):
    record = {
        "method": "awq",
        "quantizer": "awq",
        "settings": SETTINGS,
        "calibration": {"file": str(root / "data/calibration.txt"), "tokens_sha256": "other"},
    }
    with pytest.raises(UserError, match="is not what awq was calibrated on"):
        calibration_evidence(record, reference_model, None, reference_tokenizer, CELL, evaluation_text, suite)


# ---------------------------------------------------------------- the study


def row(text: str | None, kl: float, corruption: str | None = None) -> dict:
    faults = ["bad"] if corruption else []
    return {
        "method": "awq",
        "text": text,
        "corruption": corruption,
        "quantized_kl_nats_mean": kl,
        "faults": faults,
    }


def test_spread_by_hand_leaves_bad_samples_out():
    rows = [row("a", 0.04), row("a", 0.06), row("b", 0.05), row("b", 0.05), row(None, 9.0, "random_tokens")]
    spread = calibration_study.spread_of(rows)
    assert (spread["cells"], spread["mean"], spread["range"]) == (4, pytest.approx(0.05), pytest.approx(0.02))
    assert spread["standard_deviation"] == pytest.approx(math.sqrt(2e-4 / 3))
    assert spread["within_texts"] == pytest.approx(math.sqrt(2e-4) / 2)  # the mean of √2 × 0.01 and 0


def test_a_difference_inside_the_range_is_not_ranked(tmp_path):
    for name, kl in [("awq", 0.05), ("nf4", 0.06), ("int8", 0.001)]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "divergence.json").write_text(json.dumps({"kl_nats": {"mean": kl}}))
    compared = calibration_study.comparisons(tmp_path, "awq", {"range": 0.02}, ["nf4", "int8"])
    assert [(c["other"], c["ranked"]) for c in compared] == [("nf4", False), ("int8", True)]
    assert compared[1]["difference_nats"] == pytest.approx(0.049)


def test_the_chart_says_what_was_noticed():
    rows = [row("a", 0.04), row("a", 0.06), row(None, 9.0, "random_tokens")]
    chart = calibration_chart(rows, {"awq": 0.05}).chart.to_json(ensure_ascii=False)
    assert "noticed by the checks" in chart
    assert "awq: random tokens" in chart


def test_samples_begin_with_bos_for_a_model_that_is_lost_without(byte_tokenizer):
    tokenizer, text = byte_tokenizer(bos=True), "abcdefghijkl" * 200
    for seed in (None, 1):
        settings = SETTINGS | {"calibration_seed": seed}
        with_bos = awq.calibration_samples(tokenizer, text, settings, "gemma2")
        assert all(sample[0] == 0 and sample.count(0) == 1 and len(sample) == 128 for sample in with_bos)
        assert all(0 not in sample for sample in awq.calibration_samples(tokenizer, text, settings, "llama"))
        forced = awq.calibration_samples(tokenizer, text, settings | {"calibration_bos": "true"}, "llama")
        assert forced == with_bos
