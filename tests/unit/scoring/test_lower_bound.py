"""The lower bound of a divergence from a few tokens' probabilities."""

import itertools
import math

import numpy
import pytest
import torch
from scipy.special import rel_entr

from quantharm.scoring.kl_divergence import divergences
from quantharm.scoring.lower_bound import NO_TOKEN, ROUNDING, lower_bounds, top_and_target


def bounds(p, q, known) -> dict[str, float]:
    """Of one position; known: ids that are shown."""
    ids = torch.tensor([known])
    at = ids.clamp_min(0)
    ln_p, ln_q = (torch.tensor(numpy.array([values], dtype=float)).log().gather(-1, at) for values in (p, q))
    return {name: float(value) for name, value in lower_bounds(ln_p, ln_q, ids, len(p)).items()}


def test_by_hand():
    p, q = [0.5, 0.3, 0.1, 0.1], [0.4, 0.2, 0.3, 0.1]
    by_hand = 0.5 * math.log(0.5 / 0.4) + 0.5 * math.log(0.5 / 0.6)  # the first token is shown; 0.3 + 0.1 + 0.1 is not
    assert bounds(p, q, [0])["kl_nats"] == pytest.approx(by_hand, abs=1e-6)
    assert by_hand < sum(rel_entr(p, q))
    backwards = 0.4 * math.log(0.4 / 0.5) + 0.6 * math.log(0.6 / 0.5)
    assert bounds(p, q, [0])["reverse_kl_nats"] == pytest.approx(backwards, abs=1e-6)
    half = 0.5 * (sum(rel_entr([0.5, 0.5], [0.45, 0.55])) + sum(rel_entr([0.4, 0.6], [0.45, 0.55])))
    assert bounds(p, q, [0])["js_nats"] == pytest.approx(half, abs=1e-6)


def test_all_tokens_give_the_divergence_itself_and_places_without_a_token_do_not_count():
    p, q = [0.5, 0.3, 0.1, 0.1], [0.4, 0.2, 0.3, 0.1]
    assert bounds(p, q, [2, 0, NO_TOKEN, 1, 3])["kl_nats"] == pytest.approx(sum(rel_entr(p, q)), abs=1e-12)


def test_equality_where_what_is_not_shown_is_proportional():
    p, q = [0.5, 0.2, 0.2, 0.1], [0.2, 0.32, 0.32, 0.16]
    assert bounds(p, q, [0])["kl_nats"] == pytest.approx(sum(rel_entr(p, q)), abs=2e-6)


def test_no_distribution_that_agrees_with_what_is_shown_is_nearer():
    """Whatever the rest may be, its divergence is no less; the bound rises with the tokens that are shown."""
    generator = numpy.random.default_rng(0)
    for _ in range(40):
        p, q = generator.dirichlet(numpy.full(30, 0.3), 2)
        shown = numpy.argsort(-q)[:6].tolist()
        bound = bounds(p, q, shown)
        rest = [i for i in range(30) if i not in shown]
        for others in generator.dirichlet(numpy.full(len(rest), 0.3), 20):
            other = q.copy()
            other[rest] = others * q[rest].sum()
            assert bound["kl_nats"] <= sum(rel_entr(p, other)) + 1e-12
            assert bound["reverse_kl_nats"] <= sum(rel_entr(other, p)) + 1e-12
            m = (p + other) / 2
            assert bound["js_nats"] <= (sum(rel_entr(p, m)) + sum(rel_entr(other, m))) / 2 + 1e-12
        rising = [bounds(p, q, shown[:k])["kl_nats"] for k in range(1, 7)]
        assert all(a <= b + 2 * ROUNDING for a, b in itertools.pairwise(rising))


def test_rounded_probabilities_that_leave_nothing_give_no_false_divergence():
    """Shown are float32 numbers that sum to 1; the baseline's rest is 2e-7: without slack its logarithm would count."""
    p, q = [0.7, 0.3 - 2e-7, 1e-7, 1e-7], [0.7, 0.3, 1e-300, 1e-300]
    assert 0 <= bounds(p, q, [0, 1])["kl_nats"] < 1e-6


def test_what_a_server_would_show_is_the_top_and_the_token_that_follows():
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0], [4.0, 3.0, 1.0, 2.0]])
    assert top_and_target(logits, torch.tensor([0, 1]), 2).tolist() == [[1, 3, 0], [0, 1, NO_TOKEN]]


def test_every_cell_tells_what_a_server_would():
    torch.manual_seed(1)
    baseline, logits = 4 * torch.randn(2, 50, 300)
    targets = torch.randint(0, 300, (50,))
    measured = divergences(baseline, logits, targets, baseline.argmax(-1), bounded=True)
    assert (measured["kl_lower_bound_nats"] <= measured["kl_nats"] + 1e-9).all()
    assert (measured["kl_lower_bound_nats"] > 0.2 * measured["kl_nats"]).all()
    assert "kl_lower_bound_nats" not in divergences(baseline, logits, targets, baseline.argmax(-1))
