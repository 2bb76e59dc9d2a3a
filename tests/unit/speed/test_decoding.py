"""Greedy decoding against transformers' generate, its ends, and what the benchmark counts."""

import pytest
import torch

from quantharm.speed.decoding import continue_greedily, eos_token_ids_of, is_degenerate

PROMPTS = ["The sea is", "Count from one to ten:", "What is the capital of France?", "x", "Once upon a time there was"]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_continuation_equals_generate_token_for_token(reference_model, reference_tokenizer, prompt):
    ids = reference_tokenizer(prompt)["input_ids"]
    eos_token_ids = eos_token_ids_of(reference_model, reference_tokenizer)
    ours = continue_greedily(reference_model, ids, 24, eos_token_ids, 1024)
    prompt_ids = torch.tensor([ids])
    theirs = reference_model.generate(
        prompt_ids,
        attention_mask=torch.ones_like(prompt_ids),
        max_new_tokens=24,
        do_sample=False,
        repetition_penalty=1.0,
        eos_token_id=list(eos_token_ids),
        pad_token_id=0,
    )[0, len(ids) :].tolist()
    assert ours.token_ids == theirs
    assert ours.finite
    assert ours.stop_reason == ("end_of_sequence" if theirs[-1] in eos_token_ids else "length")
    assert 0 < ours.time_to_first_token_seconds <= ours.seconds


@pytest.mark.parametrize("kind", ["llama_tied", "gpt2", "gemma2", "qwen2"])
def test_continuation_equals_decoding_without_a_cache(tiny, kind):
    model = tiny(kind)
    ids = [0, 7, 99, 31]
    expected = list(ids)
    for _ in range(12):
        expected.append(int(model(torch.tensor([expected])).logits[0, -1].argmax()))
    assert continue_greedily(model, ids, 12, set(), None).token_ids == expected[4:]


def test_samplers_of_the_generation_config_are_not_used(tiny):
    model = tiny("llama")
    plain = continue_greedily(model, [0, 5, 6], 16, set(), None).token_ids
    model.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=5.0, top_k=3)
    assert continue_greedily(model, [0, 5, 6], 16, set(), None).token_ids == plain


def test_the_end_token_is_kept_and_nothing_follows_it(tiny):
    model = tiny("llama")
    free = continue_greedily(model, [0, 5, 6], 8, set(), None)
    assert (free.stop_reason, len(free.token_ids)) == ("length", 8)
    end = free.token_ids[3]
    stopped = continue_greedily(model, [0, 5, 6], 8, {end}, None)
    assert stopped.stop_reason == "end_of_sequence"
    assert stopped.token_ids == free.token_ids[: free.token_ids.index(end) + 1]


def test_an_answer_stops_at_the_models_context(tiny):
    model = tiny("gpt2")  # 128 learned positions: one more would be an error
    result = continue_greedily(model, list(range(2, 122)), 50, set(), 128)
    assert (result.stop_reason, len(result.token_ids)) == ("context", 8)
    fits = continue_greedily(model, list(range(2, 122)), 8, set(), 128)
    assert fits.stop_reason == "length"
    assert fits.token_ids == result.token_ids


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_stop_the_answer(tiny, value):
    model = tiny("llama")
    model.lm_head.weight[9, 9] = value
    result = continue_greedily(model, [0, 5, 6], 8, set(), None)
    assert (result.stop_reason, result.token_ids, result.finite) == ("not_finite", [], False)


def test_large_float16_logits_are_finite(tiny):
    """Their sum is beyond float16's largest number; each of them is not."""
    model = tiny("llama", torch.float16, vocab_size=512)
    hidden = model.model(torch.tensor([[0, 5, 6]])).last_hidden_state[0, -1].float()
    model.lm_head.weight.copy_((hidden / hidden.norm() ** 2 * 300).repeat(512, 1))
    logits = model(torch.tensor([[0, 5, 6]])).logits[0, -1]
    assert torch.isfinite(logits).all()
    assert logits.float().sum() > 65504
    assert continue_greedily(model, [0, 5, 6], 1, set(), None).finite


def test_end_tokens_are_the_models_and_the_tokenizers(tiny, byte_tokenizer):
    model = tiny("llama")
    model.generation_config.eos_token_id = [4, 9]
    assert eos_token_ids_of(model, byte_tokenizer()) == {1, 4, 9}
    model.generation_config.eos_token_id = 7
    assert eos_token_ids_of(model, byte_tokenizer()) == {1, 7}
    model.generation_config.eos_token_id = None
    assert eos_token_ids_of(model, byte_tokenizer()) == {1}


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([5] * 24, True),
        (list(range(100)) + [1, 2] * 12, True),
        ([1, 2, 3] * 8, True),
        ([1, 2, 3, 4] * 6, True),
        ([1, 2, 3, 4, 5] * 6, False),  # a cycle of five
        ([5] * 23, False),  # too short to tell
        ([5] * 23 + [6], False),
        ([6] + [5] * 23, False),
        (list(range(24)), False),
        ([], False),
    ],
)
def test_is_degenerate(tokens, expected):
    assert is_degenerate(tokens) is expected
