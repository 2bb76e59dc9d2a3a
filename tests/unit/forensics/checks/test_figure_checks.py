"""The checks of figures pass on what innocent models measure, and fail on what cannot be."""

import math

import pytest
import torch

from quantharm.common.files import write_json
from quantharm.forensics.checks import figures
from quantharm.forensics.checks.figures import check_consistency, check_finite, check_self_divergence


@pytest.mark.parametrize(
    ("mean", "status"), [(0.0, "pass"), (5e-7, "pass"), (1e-5, "pass"), (2e-5, "fail"), (math.nan, "fail")]
)
def test_self_divergence(mean, status):
    check = check_self_divergence({"kl_nats": {"mean": mean}})
    assert (check["name"], check["status"], check["limit"]) == ("self_divergence", status, 1e-5)


def test_finite():
    assert check_finite({"not_finite": 0})["status"] == "pass"
    assert check_finite({"not_finite": 1})["status"] == "fail"


def on_text(kl: float, square: float, standard_error: float = 0.0) -> dict:
    """The part of divergence.json that the check reads."""
    figures = {"kl_nats_mean": kl, "log_perplexity_ratio": 0.01, "squared_delta_nll_mean": square}
    return {"text": figures | {"squared_delta_nll_standard_error": standard_error}}


def test_consistency_is_not_asked_of_random_weights():
    wrong = on_text(0.67, 0.0)
    assert check_consistency(wrong | {"synthetic": False})["status"] == "fail"
    check = check_consistency(wrong | {"synthetic": True})
    assert (check["status"], "synthetic weights" in check["explanation"]) == ("skipped", True)


def test_consistency_allows_for_what_few_tokens_cannot_tell():
    """KL 0.1 is a factor of 4 from half of 0.05, but a standard error of 0.01 cannot tell it from a factor of 3."""
    assert check_consistency(on_text(0.1, 0.05))["status"] == "fail"
    assert check_consistency(on_text(0.1, 0.05, 0.01))["status"] == "pass"
    assert check_consistency(on_text(0.1, 0.05, 0.005))["status"] == "fail"
    assert check_consistency(on_text(0.01, 0.7, 0.01))["status"] == "fail"
    assert check_consistency(on_text(0.01, 0.7, 0.05))["status"] == "pass"


@pytest.mark.parametrize(
    ("kl", "square", "status"),
    [
        (0.05, 0.1, "pass"),
        (0.05, 0.034, "pass"),
        (0.05, 0.033, "fail"),
        (0.05, 2.9, "pass"),
        (0.05, 3.1, "fail"),
        (0.67, 0.06, "fail"),  # from a hand-made report: KL 0.67 nats of an INT8 model that hardly moved
        (1.45, 0.0, "fail"),
        (9e-4, 1e-3, "skipped"),
        (9e-4, 3e-3, "pass"),
        (9e-4, 0.1, "fail"),  # nothing of a KL where the tokens moved
        (math.nan, 0.1, "fail"),
    ],
)
def test_consistency(kl, square, status):
    check = check_consistency(on_text(kl, square))
    assert check["status"] == status
    if square and status != "skipped" and kl == kl:
        assert check["value"] == pytest.approx(2 * kl / square)


@pytest.mark.parametrize("sharpness", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("noise", [0.1, 0.5])
def test_an_innocent_model_need_not_predict_the_text(sharpness, noise):
    """A model that is overconfident of the text, as chat-tuned ones are, and the same with noise on its logits."""
    random = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(1500, 500, generator=random, dtype=torch.float64)
    tokens = torch.multinomial(logits.softmax(-1), 1, generator=random)
    moved = logits + noise * torch.randn(logits.shape, generator=random, dtype=torch.float64)
    ln_p, ln_q = ((sharpness * x).log_softmax(-1) for x in (logits, moved))
    kl = (ln_p.exp() * (ln_p - ln_q)).sum(-1)
    square = (ln_p - ln_q).gather(1, tokens)[:, 0] ** 2
    figures = (float(square.mean()), float(square.std() / 1500**0.5))
    assert check_consistency(on_text(float(kl.mean()), *figures))["status"] == "pass"
    assert check_consistency(on_text(float(40 * kl.mean()), *figures))["status"] == "fail"
    assert check_consistency(on_text(float(kl.mean()) / 200, *figures))["status"] == "fail"


def test_consistency_of_an_earlier_record_is_skipped():
    text = {"kl_nats_mean": 0.1, "log_perplexity_ratio": 0.1, "log_perplexity_ratio_standard_error": 0.0}
    assert check_consistency({"text": text})["status"] == "skipped"


def test_consistency_is_skipped_without_text_windows():
    assert check_consistency({"text": None})["status"] == "skipped"


def test_values_that_are_not_finite_can_be_written_as_json(tmp_path):
    check = check_consistency(on_text(1.0, 0.0))
    assert check["value"] == "inf"
    write_json(tmp_path / "checks.json", {"checks": [check]})


def test_limits_are_the_documented_ones():
    assert figures.SELF_DIVERGENCE_LIMIT == 1e-5
    assert (figures.CONSISTENCY_LIMIT, figures.CONSISTENCY_LEAST, figures.CONSISTENCY_FROM) == (3.0, 30.0, 1e-3)
