"""KL by depth, against a sum by hand."""

import pandas
import pytest

from quantharm.common.statistics import stratified_mean
from quantharm.scoring.depth import kl_by_depth


def rows_of(prompt: str, category: str, first: int, values: list[float]) -> list[dict]:
    return [
        {"prompt_id": prompt, "category": category, "position": first + i, "kl_nats": v, "top1_agrees": v < 0.5}
        for i, v in enumerate(values)
    ]


def test_depth_counts_from_the_first_token_of_each_answer():
    """Prompts of other lengths; a mean of category means of prompt means in each bin; the text is left out."""
    rows = rows_of("a-1", "a", 7, [0.1] * 16 + [0.3] * 16 + [0.9] * 8)
    rows += rows_of("a-2", "a", 90, [0.2] * 16 + [0.4] * 4)
    rows += rows_of("b-1", "b", 3, [0.6] * 10)
    rows += rows_of("text-1", "text", 0, [9.0] * 100)
    bins = kl_by_depth(pandas.DataFrame(rows))
    assert [(b["from_tokens"], b["to_tokens"]) for b in bins] == [(0, 16), (16, 32), (32, 64)]
    assert [b["prompts"] for b in bins] == [3, 2, 1]
    assert [b["positions"] for b in bins] == [42, 20, 8]
    assert bins[0]["kl_nats_mean"] == pytest.approx(((0.1 + 0.2) / 2 + 0.6) / 2)
    assert bins[1]["kl_nats_mean"] == pytest.approx((0.3 + 0.4) / 2)
    assert bins[2]["kl_nats_mean"] == pytest.approx(0.9)
    assert [b["top1_agreement"] for b in bins] == [0.5, 1.0, 0.0]
    assert [b["ci95"] for b in bins] == [None] * 3  # too few prompts


def test_intervals_are_over_prompts_within_categories():
    values = {"a": [0.1, 0.2, 0.4, 0.3], "b": [0.5, 0.4, 0.9, 0.6]}
    rows = [
        row
        for category, means in values.items()
        for i, mean in enumerate(means)
        for row in rows_of(f"{category}-{i}", category, 5, [mean] * 20)
    ]
    bins = kl_by_depth(pandas.DataFrame(rows))
    expected = stratified_mean(list(values.values()))
    for found in bins:
        assert found["kl_nats_mean"] == pytest.approx(expected["mean"])
        assert found["ci95"] == pytest.approx(expected["ci95"])
