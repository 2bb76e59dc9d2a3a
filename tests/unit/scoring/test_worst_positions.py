"""The worst positions: the right ones, whatever the order and size of the pieces they come in."""

import numpy
import pandas
import pytest
import torch

from quantharm.scoring.worst_positions import WorstPositions, top_tokens, with_texts


class Offers:
    """Offers positions in pieces, and keeps the rows and the sequence that belong to them."""

    def __init__(self, limit: int):
        self.worst = WorstPositions(limit)
        self.rows = pandas.DataFrame({"prompt_id": [], "category": [], "position": []})
        self.sequence: list[int] = []

    def offer(self, kl) -> None:
        n, first = len(kl), len(self.sequence)
        more = {"prompt_id": ["p"] * n, "category": ["c"] * n, "position": range(first, first + n)}
        self.rows = pandas.concat([self.rows, pandas.DataFrame(more)], ignore_index=True).astype({"position": int})
        self.sequence += [1000 + i for i in range(first, first + n)]
        kl = torch.as_tensor(numpy.asarray(kl))
        self.worst.offer(kl, torch.zeros(n, 8).half(), torch.zeros(n, 8))

    def records(self) -> list[dict]:
        return self.worst.records(self.rows, {"p": self.sequence})


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_the_largest_are_kept_the_largest_first(piece):
    kl = numpy.random.default_rng(0).exponential(size=1000)
    offers = Offers(20)
    for start in range(0, 1000, piece):
        offers.offer(kl[start : start + piece])
    expected = numpy.argsort(-kl)[:20]
    records = offers.records()
    assert [r["position"] for r in records] == expected.tolist()
    assert [r["target_id"] for r in records] == (1000 + expected).tolist()
    assert [r["kl_nats"] for r in records] == kl[expected].tolist()


def test_what_is_kept_with_a_position_is_its_own():
    """Both models' first choices of the kept positions, of pieces offered one after the other."""
    torch.manual_seed(0)
    kl, stored, logits = torch.rand(100).double(), torch.randn(100, 16).half(), torch.randn(100, 16)
    worst = WorstPositions(7)
    for part in torch.arange(100).split(9):
        worst.offer(kl[part], stored[part], logits[part])
    rows = pandas.DataFrame({"prompt_id": "p", "category": "c", "position": range(100)})
    records = worst.records(rows, {"p": list(range(100))})
    assert len(records) == 7
    for record in records:
        assert record["baseline_top5"][0][0] == int(stored[record["position"]].argmax())
        assert record["method_top5"][0][0] == int(logits[record["position"]].argmax())


def test_one_that_is_larger_by_little_takes_its_place():
    offers = Offers(3)
    for i in range(50):
        offers.offer([1.0 + 1e-6 * i])
    assert [r["position"] for r in offers.records()] == [49, 48, 47]


def test_equal_ones_stay_in_the_order_of_arrival():
    offers = Offers(3)
    for _ in range(4):
        offers.offer([1.0] * 5)
    assert [r["position"] for r in offers.records()] == [0, 1, 2]


def test_fewer_positions_than_asked():
    offers = Offers(5)
    assert offers.records() == []
    offers.offer([0.1, 0.3])
    assert [r["kl_nats"] for r in offers.records()] == [0.3, 0.1]


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
