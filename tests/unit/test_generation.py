"""One row a prompt, and the figures over them, by hand."""

import pandas
import pytest
from stage_chain import Chain

from quantharm.common.errors import UserError
from quantharm.generation import check_prompt_tokens, row_of, summarise
from quantharm.speed.decoding import continue_greedily


@pytest.fixture
def prompt() -> dict:
    return {"id": "a-01", "category": "A", "prompt": "abc", "answer": {"kind": "contains", "value": "zzz"}}


def row(model, tokenizer, prompt, ids: list[int], new_tokens: int) -> dict:
    return row_of(tokenizer, prompt, ids, continue_greedily(model, ids, new_tokens, set(), 128), "eager")


def test_a_row_holds_the_greedy_answer(tiny, byte_tokenizer, prompt):
    model, tokenizer = tiny("llama", vocab_size=258), byte_tokenizer()
    ids = tokenizer("abc")["input_ids"]
    made = row(model, tokenizer, prompt, ids, 10)
    expected = continue_greedily(model, ids, 10, set(), 128).token_ids
    assert made["token_ids"] == expected
    assert made["prompt_token_ids"] == ids
    assert made["text"] == tokenizer.decode(expected, skip_special_tokens=True)
    assert (made["new_tokens"], made["stop_reason"], made["succeeded"], made["correct"]) == (10, "length", True, False)
    assert 0 < made["time_to_first_token_seconds"] <= made["seconds"]
    assert made["decoding"] == "eager"


def test_a_prompt_without_an_answer_is_not_judged(tiny, byte_tokenizer, prompt):
    del prompt["answer"]
    made = row(tiny("llama", vocab_size=258), byte_tokenizer(), prompt, [5, 6], 3)
    assert made["correct"] is None


def test_a_model_that_gives_nan_does_not_succeed(tiny, byte_tokenizer, prompt):
    model = tiny("llama", vocab_size=258)
    model.lm_head.weight.fill_(float("nan"))
    made = row(model, byte_tokenizer(), prompt, [5, 6], 3)
    assert (made["finite"], made["succeeded"]) == (False, False)
    assert (made["token_ids"], made["stop_reason"]) == ([], "not_finite")


def test_a_model_that_repeats_itself_does_not_succeed(tiny, byte_tokenizer, prompt):
    model = tiny("llama", vocab_size=258)
    model.lm_head.weight.zero_()
    made = row(model, byte_tokenizer(), prompt, [5, 6], 30)
    assert (made["degenerate"], made["succeeded"], made["finite"]) == (True, False, True)


@pytest.mark.parametrize("tokens", [128, 200])
def test_a_prompt_that_fills_the_context_is_refused_by_name(tiny, prompt, tokens):
    with pytest.raises(UserError, match=rf"prompt a-01 has {tokens} tokens, which leaves no room .* of 128"):
        check_prompt_tokens(tiny("llama"), prompt, [5] * tokens)


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


@pytest.fixture
def cell(tiny, save_checkpoint, tmp_path, monkeypatch):
    """The baseline of a tiny model, ready to be asked."""
    chain = Chain(tmp_path, save_checkpoint(tiny("llama", vocab_size=258), tmp_path / "model"), monkeypatch)
    chain.call("quantize")
    return chain


def test_the_record_and_each_row_say_how_prompts_were_answered(cell, request):
    cell.call("generation", benchmark_batch_sizes=2)
    eager, rows = cell.read("baseline/generation.json"), pandas.read_parquet(cell / "baseline/generation.parquet")
    assert (eager["decoding"], eager["decoding_reason"]) == ("eager", "CUDA graphs need a GPU")
    assert eager["decoding_check"] is None
    assert set(rows["decoding"]) == {"eager"}
    assert [batch["batch_size"] for batch in eager["benchmark"]["batches"]] == [2]

    request.getfixturevalue("steps_instead_of_graphs")
    cell.call("generation")
    captured, again = cell.read("baseline/generation.json"), pandas.read_parquet(cell / "baseline/generation.parquet")
    assert (captured["decoding"], captured["decoding_reason"]) == ("captured", None)
    assert captured["decoding_check"]["same_tokens"] == captured["decoding_check"]["tokens"] == rows["new_tokens"].sum()
    assert captured["decoding_check"]["prompts_read"]["reason"] is None
    assert set(again["decoding"]) == {"captured"}
    assert [list(ids) for ids in again["token_ids"]] == [list(ids) for ids in rows["token_ids"]]
    assert again["stop_reason"].tolist() == rows["stop_reason"].tolist()
