"""Sampled answers come from the model's own distribution, end at its end token, and go into the two-sample test."""

import json
import sys

import pytest
import torch

from quantharm.common.errors import UserError
from quantharm.common.prompts import read_prompts
from quantharm.forensics import sample_answers
from quantharm.forensics.model_equality import compare_outputs, read_answers


def drawn(model, count, new_tokens=1, temperature=1.0, eos_token_ids=(), seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        return sample_answers.sample(model, [5, 6, 7], count, new_tokens, temperature, set(eos_token_ids), generator)


@pytest.fixture(scope="module")
def model(tiny):
    """Logits far enough apart that its distribution is not flat."""
    model = tiny("llama", torch.float32)
    model.get_output_embeddings().weight.data *= 20
    return model


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_first_tokens_are_drawn_from_the_models_distribution(model, temperature):
    with torch.no_grad():
        expected = torch.softmax(model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1] / temperature, -1)
    tokens = torch.tensor([a[0] for a in drawn(model, 4000, temperature=temperature)])
    shares = torch.bincount(tokens, minlength=len(expected)) / 4000
    distance = float((shares - expected).abs().sum() / 2)
    shuffled = float((shares - expected.roll(1)).abs().sum() / 2)
    assert distance < 0.15  # what 4,000 draws of 384 tokens vary by
    assert shuffled > 2 * distance


def test_later_tokens_follow_the_ones_drawn_before(model):
    """At a temperature near 0 the answer is the greedy one."""
    ids = [5, 6, 7]
    for _ in range(6):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert drawn(model, 3, 6, temperature=1e-4) == [ids[3:]] * 3


def test_answers_end_before_the_end_token_and_seeds_tell_them_apart(model):
    whole = drawn(model, 8, 12)
    assert whole == drawn(model, 8, 12)
    assert whole != drawn(model, 8, 12, seed=1)
    end = whole[0][4]
    for answer, before in zip(drawn(model, 8, 12, eos_token_ids=[end]), whole, strict=True):
        assert answer == (before[: before.index(end)] if end in before else before)


def test_the_command_writes_what_the_test_reads(tiny, save_checkpoint, tmp_path, monkeypatch, root):
    folder, prompts = tmp_path / "tiny", root / "data/prompts.jsonl"
    save_checkpoint(tiny("llama", torch.bfloat16, max_position_embeddings=2048), folder)

    def run(name, *more):
        words = [folder, "--prompts", prompts, "--prompts-per-category", 1, "--answers", 4, "--new-tokens", 6]
        monkeypatch.setattr(sys, "argv", ["x", *map(str, [*words, "--output", tmp_path / name, *more])])
        sample_answers.main()
        return tmp_path / name

    first, second = run("a.jsonl"), run("b.jsonl", "--seed", 1)
    records = [json.loads(line) for line in first.read_text(encoding="utf-8").splitlines()]
    assert len(records) == 4 * 12
    assert {r["prompt_id"] for r in records} == {p["id"] for p in read_prompts(prompts, 1)}
    assert compare_outputs(*read_answers(first, second), 99)["prompts"] == 12
    with pytest.raises(UserError, match="must be above 0"):
        run("c.jsonl", "--temperature", 0)
