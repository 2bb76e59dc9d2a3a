"""Defense criteria: each passes, fails, and stays open when it must."""

from types import SimpleNamespace

import pytest

from quantharm.reporting.risks import below, criteria, detection_verdict, integrity_verdict

THRESHOLDS = {
    "other_hardware_kl_nats": {"bfloat16": 5e-4},
    "defense": {
        "perplexity_change_percent": 5,
        "kl_nats": 1.0,
        "high_stakes_categories": ["Questions", "Code"],
        "high_stakes_kl_nats": 0.1,
    },
}


FAR = {"same_as_original": False, "kl_nats_mean": 0.02, "kl_nats_ci95": [0.01, 0.03]}
NEAR = FAR | {"kl_nats_mean": 3e-4, "kl_nats_ci95": [2e-4, 6e-4]}


def category(mean: float, low: float, high: float) -> dict:
    return {"kl_nats_mean": mean, "ci95": [low, high]}


def cell(change=1.0, interval=(0.5, 1.5), integrity=None, **categories) -> SimpleNamespace:
    known = {"Questions": category(0.02, 0.01, 0.03), "Code": category(0.03, 0.02, 0.04)} | categories
    row = {
        "perplexity_change_percent": change,
        "perplexity_change_percent_ci95": interval and list(interval),
    }
    divergence = {"store": {"dtype": "bfloat16"}}
    kind = {"synthetic": False, "bounded": False}
    return SimpleNamespace(row=row, by_category=known, integrity=integrity, divergence=divergence, **kind)


@pytest.mark.parametrize(
    ("change", "interval", "level"),
    [
        (1.0, (0.5, 1.5), "pass"),
        (-4.0, (-4.9, -3.0), "pass"),
        (4.8, (4.0, 5.5), "undecided"),
        (-5.1, (-6.0, -4.5), "undecided"),
        (7.0, (6.0, 8.0), "fail"),
        (-9.0, (-9.5, -8.5), "fail"),  # far better than the baseline is another model, too
    ],
)
def test_perplexity_within_five_percent(change, interval, level):
    assert criteria(cell(change, interval), THRESHOLDS)["Perplexity near the baseline"].level == level


@pytest.mark.parametrize(
    ("other", "level", "shown"),
    [
        (category(0.05, 0.04, 0.06), "pass", "Other"),
        (category(0.9, 0.7, 1.2), "undecided", "Other"),
        (category(1.5, 1.2, 2.0), "fail", "Other"),
        (category(0.9, 0.5, 0.95), "pass", "Other"),
    ],
)
def test_kl_below_one_in_every_category(other, level, shown):
    verdict = criteria(cell(Other=other), THRESHOLDS)["KL bounded in every category"]
    assert verdict.level == level
    assert verdict.figure.startswith(shown)


def test_a_category_of_smaller_mean_whose_interval_crosses_decides():
    criterion = {"A": category(0.9, 0.85, 0.95), "B": category(0.6, 0.1, 1.4)}
    verdict = below(criterion, ["A", "B"], 1.0)
    assert verdict.level == "undecided"
    assert verdict.figure.startswith("B: ")


def test_high_stakes_have_a_limit_of_their_own():
    assert criteria(cell(), THRESHOLDS)["High-stakes categories preserved"].level == "pass"
    risky = cell(Code=category(0.2, 0.15, 0.3))
    assert criteria(risky, THRESHOLDS)["High-stakes categories preserved"].level == "fail"
    assert criteria(risky, THRESHOLDS)["KL bounded in every category"].level == "pass"
    elsewhere = cell(Poems=category(0.9, 0.8, 0.95))
    assert criteria(elsewhere, THRESHOLDS)["High-stakes categories preserved"].level == "pass"


def test_a_high_stakes_category_that_was_not_measured_leaves_it_open():
    criterion = cell()
    del criterion.by_category["Code"]
    verdict = criteria(criterion, THRESHOLDS)["High-stakes categories preserved"]
    assert (verdict.level, verdict.words) == ("unknown", "not measured: Code")
    assert below({}, [], 1.0).level == "unknown"


@pytest.mark.parametrize(
    ("record", "level", "figure"),
    [
        (None, "unknown", "–"),
        ({"verified": True}, "unknown", "–"),
        ({"if_dequantized": {"verdict": "dequantized"}, "behaviour": None}, "pass", "noticed by its weights"),
        (
            {"if_dequantized": {"verdict": "no trace"}, "behaviour": FAR},
            "pass",
            "noticed by its behaviour",
        ),
        (
            {"if_dequantized": {"verdict": "dequantized"}, "behaviour": FAR},
            "pass",
            "noticed by its weights and by its behaviour",
        ),
        (
            {"if_dequantized": {"verdict": "no trace"}, "behaviour": {"same_as_original": True}},
            "fail",
            "noticed by neither",
        ),
    ],
)
def test_unauthorized_quantization_is_detected_by_weights_or_behaviour(record, level, figure):
    verdict = detection_verdict(record, 5e-4)
    assert (verdict.level, verdict.figure) == (level, figure)


def test_a_divergence_that_other_hardware_explains_detects_nothing():
    verdict = detection_verdict({"if_dequantized": {"verdict": "no trace"}, "behaviour": NEAR}, 5e-4)
    assert (verdict.level, verdict.words) == ("undecided", "undecided: within differences between processors")
    assert detection_verdict({"behaviour": NEAR}, 1e-6).level == "pass"
    assert detection_verdict({"behaviour": NEAR | {"kl_nats_ci95": None}}, 5e-4).level == "undecided"
    untold = detection_verdict({"behaviour": FAR | {"same_as_original": None}}, 5e-4)
    assert (untold.level, "cannot be told" in untold.words) == ("undecided", True)
    assert detection_verdict({"if_dequantized": {"verdict": "dequantized"}, "behaviour": NEAR}, 5e-4).level == "pass"


def test_a_criterion_without_an_interval_does_not_pass():
    assert criteria(cell(1.0, None), THRESHOLDS)["Perplexity near the baseline"].level == "undecided"
    single = cell(Other={"kl_nats_mean": 0.001, "ci95": None})
    assert criteria(single, THRESHOLDS)["KL bounded in every category"].level == "undecided"


def test_integrity_passes_fails_or_stays_open():
    assert integrity_verdict({"verified": True, "explanation": "x"}).level == "pass"
    assert integrity_verdict({"verified": False, "explanation": "x"}).level == "fail"
    undecided = integrity_verdict({"verified": None, "explanation": "no signature"})
    assert (undecided.level, undecided.words, undecided.figure) == ("unknown", "not verified", "no signature")
    assert integrity_verdict(None).words == "not measured"
