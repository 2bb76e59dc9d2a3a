"""The worst positions: the right ones, whatever the order and size of the pieces they come in."""

import numpy
import pytest
import torch

from quantharm.worst_positions import WorstPositions, top_tokens, with_texts


def offer(worst: WorstPositions, kl, first: int = 0) -> None:
    n = len(kl)
    rows = {"position": numpy.arange(first, first + n), "kl_nats": numpy.asarray(kl)}
    worst.offer("p", "c", rows, list(range(first, first + n)), torch.zeros(n, 8), torch.zeros(n, 8))


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_the_largest_are_kept_the_largest_first(piece):
    kl = numpy.random.default_rng(0).exponential(size=1000)
    worst = WorstPositions(20)
    for start in range(0, 1000, piece):
        offer(worst, kl[start : start + piece], start)
    expected = numpy.argsort(-kl)[:20]
    assert [r["position"] for r in worst.records()] == expected.tolist()
    assert [r["target_id"] for r in worst.records()] == expected.tolist()
    assert [r["kl_nats"] for r in worst.records()] == kl[expected].tolist()


def test_one_that_is_larger_by_little_takes_its_place():
    worst = WorstPositions(3)
    for i in range(50):
        offer(worst, [1.0 + 1e-6 * i], i)
    assert [r["position"] for r in worst.records()] == [49, 48, 47]


def test_equal_ones_stay_in_the_order_of_arrival():
    worst = WorstPositions(3)
    offer(worst, [1.0] * 10)
    assert [r["position"] for r in worst.records()] == [0, 1, 2]


def test_fewer_positions_than_asked():
    worst = WorstPositions(5)
    assert worst.records() == []
    offer(worst, [0.1, 0.3])
    assert [r["kl_nats"] for r in worst.records()] == [0.3, 0.1]


def test_top_tokens_are_probabilities_of_both_models():
    p, q = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.1, 0.2, 0.7]])
    tops = top_tokens((p.log() + 0.0).half(), q.log() + 5)
    assert tops["baseline_ids"].tolist() == [[0, 1, 2]]
    assert tops["method_ids"].tolist() == [[2, 1, 0]]
    torch.testing.assert_close(tops["baseline_p"], torch.tensor([[0.5, 0.3, 0.2]]).double(), rtol=1e-3, atol=0)
    torch.testing.assert_close(tops["method_p"], torch.tensor([[0.7, 0.2, 0.1]]).double(), rtol=1e-6, atol=0)


def test_texts_are_those_around_the_position(byte_tokenizer):
    tokenizer = byte_tokenizer()
    ids = tokenizer("abcdef")["input_ids"]
    record = {
        "prompt_id": "p",
        "position": 3,
        "target_id": ids[3],
        "baseline_top5": [[ids[3], 0.9]],
        "method_top5": [[ids[0], 0.5]],
    }
    (shown,) = with_texts([record], tokenizer, {"p": ids})
    assert (shown["context"], shown["target"], shown["context_is_cut"]) == ("abc", "d", False)
    assert shown["token_texts"] == {str(ids[3]): "d", str(ids[0]): "a"}
