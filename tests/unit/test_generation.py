"""One row a prompt, and the figures over them, by hand."""

import pandas
import pytest

from quantharm.common.errors import UserError
from quantharm.generation import answer_prompt, summarise
from quantharm.speed.decoding import continue_greedily


@pytest.fixture
def prompt() -> dict:
    return {"id": "a-01", "category": "A", "prompt": "abc", "answer": {"kind": "contains", "value": "zzz"}}


def test_a_row_holds_the_greedy_answer(tiny, byte_tokenizer, prompt):
    model, tokenizer = tiny("llama", vocab_size=258), byte_tokenizer()
    ids = tokenizer("abc")["input_ids"]
    row = answer_prompt(model, tokenizer, prompt, ids, 10, set())
    expected = continue_greedily(model, ids, 10, set(), 128).token_ids
    assert row["token_ids"] == expected
    assert row["prompt_token_ids"] == ids
    assert row["text"] == tokenizer.decode(expected, skip_special_tokens=True)
    assert (row["new_tokens"], row["stop_reason"], row["succeeded"], row["correct"]) == (10, "length", True, False)
    assert 0 < row["time_to_first_token_seconds"] <= row["seconds"]


def test_a_prompt_without_an_answer_is_not_judged(tiny, byte_tokenizer, prompt):
    del prompt["answer"]
    row = answer_prompt(tiny("llama", vocab_size=258), byte_tokenizer(), prompt, [5, 6], 3, set())
    assert row["correct"] is None


def test_a_model_that_gives_nan_does_not_succeed(tiny, byte_tokenizer, prompt):
    model = tiny("llama", vocab_size=258)
    model.lm_head.weight.fill_(float("nan"))
    row = answer_prompt(model, byte_tokenizer(), prompt, [5, 6], 3, set())
    assert (row["finite"], row["succeeded"], row["token_ids"], row["stop_reason"]) == (False, False, [], "not_finite")


def test_a_model_that_repeats_itself_does_not_succeed(tiny, byte_tokenizer, prompt):
    model = tiny("llama", vocab_size=258)
    model.lm_head.weight.zero_()
    row = answer_prompt(model, byte_tokenizer(), prompt, [5, 6], 30, set())
    assert (row["degenerate"], row["succeeded"], row["finite"]) == (True, False, True)


@pytest.mark.parametrize("tokens", [128, 200])
def test_a_prompt_that_fills_the_context_is_refused_by_name(tiny, byte_tokenizer, prompt, tokens):
    with pytest.raises(UserError, match=rf"prompt a-01 has {tokens} tokens, which leaves no room .* of 128"):
        answer_prompt(tiny("llama"), byte_tokenizer(), prompt, [5] * tokens, 10, set())


def test_figures_by_hand():
    rows = pandas.DataFrame(
        {
            "seconds": [1.0, 3.0, 2.0],
            "time_to_first_token_seconds": [0.1, 0.2, 0.6],
            "new_tokens": [10, 20, 0],
            "succeeded": [True, True, False],
            "degenerate": [False, False, True],
            "correct": pandas.array([True, None, False], dtype="boolean"),
        }
    )
    assert summarise(rows) == {
        "prompts": 3,
        "succeeded": 2,
        "seconds_mean": 2.0,
        "time_to_first_token_seconds_mean": pytest.approx(0.3),
        "new_tokens_mean": 10.0,
        "tokens_per_second": 5.0,  # 30 tokens in 6 seconds, not the mean of 10, 6.7 and 0
        "degenerate": 1,
        "judged": 2,
        "correct": 1,
    }
