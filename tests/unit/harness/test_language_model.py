"""What lm-evaluation-harness is told of a model, against plain passes in float64 and transformers' generate()."""

import pytest
import torch
from lm_eval.api.instance import Instance

from quantharm.common.chat import Asking
from quantharm.common.errors import UserError
from quantharm.harness.language_model import LoadedModel

NEVER = Asking(chat_template="never")
PAIRS = [
    ("The quick brown", " fox"),
    ("The quick brown", " dog, or a cat"),
    ("", "Anything"),
    ("One", " 1"),
    ("One", " 2"),
]


def requests_of(pairs, kind="loglikelihood"):
    return [Instance(request_type=kind, doc={}, arguments=pair, idx=i) for i, pair in enumerate(pairs)]


@pytest.fixture(scope="module")
def model(tiny):
    return tiny("llama")


@pytest.fixture(scope="module")
def asked(model, byte_tokenizer):
    return LoadedModel(model, byte_tokenizer(bos=True), NEVER)


def plainly(model, tokenizer, prompt, ending):
    """(Σ ln p, greedy) of an ending by one forward pass in float64."""
    ids = tokenizer(prompt + ending)["input_ids"]
    first = len(tokenizer(prompt)["input_ids"])
    logits = model.double()(torch.tensor([ids])).logits[0, first - 1 : -1]
    model.float()
    targets = torch.tensor(ids[first:])
    return float(logits.log_softmax(-1).gather(-1, targets[:, None]).sum()), bool((logits.argmax(-1) == targets).all())


def test_log_likelihoods_are_those_of_a_plain_pass(model, asked):
    answers = asked.loglikelihood(requests_of(PAIRS), disable_tqdm=True)
    for (prompt, ending), (value, greedy) in zip(PAIRS, answers, strict=True):
        expected, expected_greedy = plainly(model, asked.tokenizer, prompt, ending)
        assert value == pytest.approx(expected, rel=1e-5)
        assert greedy == expected_greedy


def test_the_greedy_ending_is_told_from_others(model, asked):
    ids = asked.tokenizer("The quick brown")["input_ids"]
    best = int(model(torch.tensor([ids])).logits[0, -1].argmax())
    rows = [((None, None), ids, [best]), ((None, None), ids, [best + 1])]
    assert [greedy for _, greedy in asked._loglikelihood_tokens(rows, disable_tqdm=True)] == [True, False]


def test_endings_of_one_token_share_their_prompts_pass(asked, monkeypatch):
    passes = []
    from quantharm.harness import language_model

    original = language_model.last_hidden_states
    monkeypatch.setattr(language_model, "last_hidden_states", lambda m, ids: passes.append(ids) or original(m, ids))
    rows = [((None, None), [0, 5, 6], [ending]) for ending in (7, 8, 9)] + [((None, None), [0, 5, 6], [7, 8])]
    asked._loglikelihood_tokens(rows, disable_tqdm=True)
    assert passes == [[0, 5, 6], [0, 5, 6, 7]]


def test_an_answer_does_not_depend_on_what_else_is_asked(int8_cell, reference_tokenizer):
    """LLM.int8 picks its outlier columns over all tokens of a pass: here each request has one of its own."""
    asked = LoadedModel(int8_cell.model, reference_tokenizer, NEVER)
    pairs = [("The river runs north", " to the sea"), ("A harbour is a body of water in which", " ships can lie")]
    together = asked.loglikelihood(requests_of(pairs), disable_tqdm=True)
    alone = [asked.loglikelihood(requests_of([pair]), disable_tqdm=True)[0] for pair in reversed(pairs)]
    assert together == alone[::-1]


def test_a_prompt_that_is_too_long_keeps_its_end(model, byte_tokenizer):
    asked = LoadedModel(model, byte_tokenizer(bos=True), NEVER)  # a context of 128
    long = "x" * 200 + "The quick brown"
    value, _ = asked.loglikelihood(requests_of([(long, " fox")]), disable_tqdm=True)[0]
    assert asked.cut == 1
    ids = asked.tokenizer(long + " fox")["input_ids"][-129:]
    logits = model(torch.tensor([ids[:-1]])).logits[0, -4:]
    expected = logits.log_softmax(-1).gather(-1, torch.tensor(ids[-4:])[:, None]).sum()
    assert value == pytest.approx(float(expected), rel=1e-4)
    with pytest.raises(UserError, match="an ending has 200 tokens but the model's context is 128"):
        asked.loglikelihood(requests_of([("The", "y" * 200)]), disable_tqdm=True)


def test_answers_are_greedy_and_end_at_the_first_stop_word(reference_model, reference_tokenizer):
    asked = LoadedModel(reference_model, reference_tokenizer, NEVER)
    prompt = "The village of Harwell is a civil parish in"
    ids = torch.tensor([reference_tokenizer(prompt)["input_ids"]])
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 1}
    whole = reference_tokenizer.decode(reference_model.generate(ids, **settings)[0, ids.shape[1] :])
    options = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 5.0}
    assert asked.generate_until(requests_of([(prompt, options)], "generate_until"), disable_tqdm=True) == [whole]
    stop = whole.split()[3]
    options = {"until": ["no such words", stop], "max_gen_toks": 12}
    assert asked.generate_until(requests_of([(prompt, options)], "generate_until")) == [whole.split(stop)[0]]


def test_an_answer_is_no_longer_than_the_config_says(reference_model, reference_tokenizer):
    asked = LoadedModel(reference_model, reference_tokenizer, NEVER, answer_tokens=3)
    assert asked.limits({"until": "\n\n"}) == (("\n\n",), 3)
    assert asked.limits({"max_gen_toks": 2}) == ((), 2)
    long = [("The", {"max_gen_toks": 2000})]
    with pytest.raises(UserError, match="answers of 2000 tokens leave no room"):
        LoadedModel(reference_model, reference_tokenizer, NEVER).generate_until(requests_of(long, "generate_until"))


def test_a_chat_template_is_told_the_protocols_date(model, byte_tokenizer):
    template = "{{ strftime_now('%Y') }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    asked = LoadedModel(model, byte_tokenizer(template=template), Asking("required", template_date="2024-02-03"))
    assert asked.apply_chat_template([{"role": "user", "content": "Hi"}]) == "2024[user]Hi"
    with pytest.raises(UserError, match="the tokenizer has no chat template"):
        LoadedModel(model, byte_tokenizer(), Asking("required"))


def test_what_is_not_finite_is_no_answer(tiny, byte_tokenizer):
    broken = tiny("llama")
    asked = LoadedModel(broken, byte_tokenizer(), NEVER)
    broken.model.norm.weight[0] = float("nan")
    with pytest.raises(UserError, match="NaN or infinite"):
        asked.loglikelihood(requests_of([("a", "b")]), disable_tqdm=True)
    with pytest.raises(UserError, match="NaN or infinite"):
        asked.generate_until(requests_of([("a", {"max_gen_toks": 4})], "generate_until"))
