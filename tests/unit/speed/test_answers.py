"""Answers by steps over a fixed cache, as a GPU captures them; here each step is called, all else is the same."""

import pytest
import torch
import zoo

from quantharm.scoring.forward import last_hidden_states, output_head
from quantharm.speed import answers, cuda_graph, prompt_reader
from quantharm.speed.answers import answer_suite
from quantharm.speed.decoding import continue_greedily
from quantharm.speed.fixed_cache import why_no_fixed_cache
from quantharm.speed.static_decoder import NOT_FINITE, StaticDecoder

CAUSAL = [name for name in zoo.ZOO if name not in zoo.NOT_CAUSAL]
PROMPTS = [[7, 100, 33], [250 - i for i in range(40)], [18, 90, 41, 12, 9, 301, 77]]  # 40 fill a window of 32
NEW_TOKENS = 12
ALIBI = ("BLOOM",)  # makes its positions of a mask of two dimensions, which a fixed cache cannot give


def eager(model, new_tokens=NEW_TOKENS, eos_token_ids=frozenset(), context=None):
    return [continue_greedily(model, ids, new_tokens, set(eos_token_ids), context) for ids in PROMPTS]


@pytest.mark.parametrize("name", CAUSAL)
def test_every_architecture_answers_as_eager_decoding_does(name, steps_instead_of_graphs, monkeypatch):
    """With end tokens that occur, prompts of different lengths and windows that are passed; or the reason why not."""
    monkeypatch.setattr(prompt_reader, "FEWEST", 2)
    model = zoo.build(name)
    eos_token_ids = {result.token_ids[5] for result in eager(model)[:1]}
    answered = answer_suite(model, PROMPTS, NEW_TOKENS, eos_token_ids)
    expected = eager(model, eos_token_ids=eos_token_ids)
    assert [a.token_ids for a in answered.continuations] == [a.token_ids for a in expected]
    assert [a.stop_reason for a in answered.continuations] == [a.stop_reason for a in expected]
    assert answered.continuations[0].stop_reason == "end_of_sequence"
    if name in ALIBI:
        assert (answered.decoding, answered.reason[:32]) == ("eager", "the step could not be captured: ")
        return
    reason = why_no_fixed_cache(model)
    assert (answered.decoding, answered.reason) == (("eager", reason) if reason else ("captured", None))
    if not reason:  # both lengths are one when padded
        read = answered.check["prompts_read"]
        assert (read["captured"], read["reason"]) == (3, None)
        assert read["kl_nats_max"] < 1e-5


def test_prompts_that_fill_the_context_stop_there(tiny, steps_instead_of_graphs):
    model = tiny("gpt2")  # a context of 128: its table of positions has no row after it
    prompts = [list(range(5, 129)), [7, 8], list(range(5, 132)), list(range(2, 116))]
    answered = answer_suite(model, prompts, 20, set())
    expected = [continue_greedily(model, ids, 20, set(), 128) for ids in prompts]
    assert answered.decoding == "captured"
    assert [(a.token_ids, a.stop_reason) for a in answered.continuations] == [
        (a.token_ids, a.stop_reason) for a in expected
    ]
    assert [len(a.token_ids) for a in expected] == [4, 20, 1, 14]


def test_an_answer_may_end_at_its_first_token(tiny, steps_instead_of_graphs):
    model = tiny("llama")
    first = continue_greedily(model, PROMPTS[0], 1, set(), None).token_ids[0]
    answered = answer_suite(model, PROMPTS[:1], 9, {first})
    assert (answered.continuations[0].token_ids, answered.continuations[0].stop_reason) == ([first], "end_of_sequence")
    assert {answered.check[key] for key in ("tokens", "same_tokens", "same_tokens_but_ties")} == {1}


def test_times_are_of_the_answer_alone(tiny, steps_instead_of_graphs):
    answered = answer_suite(tiny("llama"), PROMPTS, 9, set())
    assert all(0 < a.time_to_first_token_seconds < a.seconds for a in answered.continuations)
    assert answered.memory["peak_bytes"] > 0


def test_without_a_gpu_answers_are_eager_and_say_why(tiny):
    answered = answer_suite(tiny("llama"), PROMPTS, 3, set())
    assert (answered.decoding, answered.reason, answered.check) == ("eager", "CUDA graphs need a GPU", None)
    assert answer_suite(tiny("llama"), PROMPTS, 1, set()).reason == "an answer of one token takes no decoding step"


def spoil_late_steps(monkeypatch):
    """As a graph would that loses what it wrote: right where it was checked, wrong from position 60 on."""
    right = StaticDecoder.mask

    def mask(self, rows, window):
        return torch.where((self.columns < 30) & (rows >= 60), self.masked, right(self, rows, window))

    monkeypatch.setattr(StaticDecoder, "mask", mask)


def test_answers_that_one_pass_does_not_give_are_given_again_eagerly(tiny, steps_instead_of_graphs, monkeypatch):
    spoil_late_steps(monkeypatch)
    model = tiny("llama")
    prompts = [*PROMPTS, [9, 8, 7]]
    assert answer_suite(model, prompts, 9, set()).decoding == "captured"  # none reaches position 60
    answered = answer_suite(model, prompts, 60, set())
    assert answered.decoding == "eager"
    assert answered.reason.startswith("captured decoding chose other tokens than one forward pass over the answers, ")
    assert [a.token_ids for a in answered.continuations] == [
        continue_greedily(model, ids, 60, set(), 128).token_ids for ids in prompts
    ]


def test_a_step_that_is_wrong_at_once_is_not_used(tiny, steps_instead_of_graphs, monkeypatch):
    monkeypatch.setattr(StaticDecoder, "mask", lambda self, rows, _: torch.zeros((1, 1, len(rows), len(self.columns))))
    answered = answer_suite(tiny("llama"), PROMPTS, 9, set())
    assert (answered.decoding, "eager_kl_nats_max" in answered.reason) == ("eager", True)


def test_logits_that_are_not_finite_end_an_answer(tiny):
    model = tiny("llama")
    decoder = StaticDecoder(model, 20)
    steps = []

    def not_a_number(_, __, output):
        steps.append(1)
        if len(steps) == 3:  # the prompt, one step, and now
            output.logits.fill_(float("nan"))

    model.register_forward_hook(not_a_number)
    answered = decoder.continue_greedily(PROMPTS[0], 9, set(), None)
    assert (len(answered.token_ids), answered.stop_reason, answered.finite) == (2, "not_finite", False)
    assert int(decoder.outcome) != NOT_FINITE  # the step that ran ahead went on


def test_answers_cut_short_where_one_pass_is_finite_are_not_believed(tiny):
    model = tiny("llama")
    whole = continue_greedily(model, PROMPTS[0], 3, set(), None)
    cut = type(whole)(whole.token_ids, "not_finite", 1.0, 1.0, False)
    with pytest.raises(answers.UserError, match="not finite where one forward pass gives finite ones"):
        answers.check_answers(model, PROMPTS[:1], [cut])


def test_what_eager_decoding_differs_by_itself_is_no_difference(tiny, monkeypatch):
    """A choice beyond two roundings of the largest logit, but not beyond twice the noise, is no other token."""
    model = tiny("llama")
    ids, given = PROMPTS[0], continue_greedily(model, PROMPTS[0], 6, set(), None)
    logits = output_head(model)(last_hidden_states(model, [*ids, *given.token_ids]))[len(ids) - 1 : -1]
    second = [*given.token_ids[:5], int(logits[5].topk(2).indices[1])]
    other = type(given)(second, "length", 1.0, 1.0, True)
    apart = float(logits[5].topk(2).values.diff().abs())
    assert apart > cuda_graph.TIE * float(logits[5].abs().max())  # rounding does not explain it
    with pytest.raises(answers.UserError, match="in 1 of 6 places"):
        answers.check_answers(model, [ids], [other])
    monkeypatch.setattr(answers, "noise_of_eager_decoding", lambda *_: 0.51 * apart)
    check = answers.check_answers(model, [ids], [other])
    assert (check["same_tokens"], check["same_tokens_but_ties"]) == (5, 6)


def test_what_eager_decoding_chooses_too_is_not_wrong(tiny, monkeypatch):
    """One pass may differ by more on an answer than on the first one, whose noise was measured."""
    model = tiny("llama")
    given = [continue_greedily(model, ids, 6, set(), None) for ids in PROMPTS]
    head = output_head(model)

    def other_pass(model, ids):
        """Its states are turned round, but for the prompt's of which the noise was measured."""
        return last_hidden_states(model, ids) * (1 if ids[: len(PROMPTS[0])] == PROMPTS[0] else -1)

    monkeypatch.setattr(answers, "last_hidden_states", other_pass)
    monkeypatch.setattr(answers, "output_head", lambda _: head)
    check = answers.check_answers(model, PROMPTS, given)
    assert check["same_tokens"] <= 8 < check["same_tokens_but_ties"] == 18
    wrong = type(given[1])([*given[1].token_ids[:3], 5, 5, 5], "length", 1.0, 1.0, True)
    with pytest.raises(answers.UserError, match=r"and than eager decoding, in [123] of 18 places"):
        answers.check_answers(model, PROMPTS, [given[0], wrong, given[2]])
    one = type(given[1])(given[1].token_ids[:1], "stopped", 1.0, 1.0, True)
    assert answers.check_answers(model, PROMPTS[1:2], [one])["same_tokens_but_ties"] == 1


def test_what_two_attention_kernels_differ_by_is_a_tie(tiny, monkeypatch):
    """Of this answer, where one pass and the noise of the first answer explain nothing."""
    model = tiny("llama")
    ids, given = PROMPTS[0], torch.tensor(continue_greedily(model, PROMPTS[0], 6, set(), None).token_ids)
    logits = output_head(model)(last_hidden_states(model, [*ids, *given.tolist()]))[len(ids) - 1 : -1]
    second = torch.cat([given[:5], logits[5].topk(2).indices[1:]])
    apart = float(logits[5].topk(2).values.diff().abs())
    assert answers.beyond_ties_of_eager_decoding(model, ids, given, 0.0) == 0
    assert answers.beyond_ties_of_eager_decoding(model, ids, second, 0.0) == 1
    assert answers.beyond_ties_of_eager_decoding(model, ids, second, 0.51 * apart) == 0
    decode = answers.decode_one_token

    def by_the_kernel(*given):
        logits, cache = decode(*given)
        if not torch.backends.cuda.flash_sdp_enabled():  # only the plain kernel is
            logits = logits + torch.tensor([0.0, 0.52 * apart] * 192)
        return logits, cache

    monkeypatch.setattr(answers, "decode_one_token", by_the_kernel)
    assert answers.beyond_ties_of_eager_decoding(model, ids, second, 0.0) == 0


@pytest.mark.parametrize("steps_changed", [7, 10])  # two a place: those before the wrong token, or its own as well
@pytest.mark.parametrize("change", [50.0, -torch.inf])
def test_kernels_that_differ_elsewhere_or_without_end_excuse_nothing(tiny, monkeypatch, steps_changed, change):
    """As where a router takes another expert at one place, or a kernel gives minus infinity."""
    model = tiny("llama")
    ids, given = PROMPTS[0], torch.tensor(continue_greedily(model, PROMPTS[0], 6, set(), None).token_ids)
    logits = output_head(model)(last_hidden_states(model, [*ids, *given.tolist()]))[len(ids) - 1 : -1]
    other = torch.cat([given[:5], logits[5].topk(10).indices[9:]])
    decode, steps = answers.decode_one_token, []

    def by_the_kernel(*given):
        logits, cache = decode(*given)
        steps.append(1)
        if not torch.backends.cuda.flash_sdp_enabled() and len(steps) <= steps_changed:
            logits = logits + torch.tensor([0.0, change] * 192)
        return logits, cache

    monkeypatch.setattr(answers, "decode_one_token", by_the_kernel)
    assert answers.beyond_ties_of_eager_decoding(model, ids, other, 0.0) == 1


def test_no_memory_for_the_check_is_a_reason_too(tiny, steps_instead_of_graphs, monkeypatch):
    def no_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 17 GiB")

    monkeypatch.setattr(answers, "check_answers", no_memory)
    answered = answer_suite(tiny("llama"), PROMPTS, 3, set())
    assert (answered.decoding, answered.reason) == ("eager", "CUDA out of memory. Tried to allocate 17 GiB")


def test_noise_of_eager_decoding_by_hand(tiny):
    model = tiny("llama")
    head = output_head(model)
    assert answers.noise_of_eager_decoding(model, head, [5, 6], []) == 0
    assert answers.noise_of_eager_decoding(model, head, [5, 6], [7, 8, 9]) < 1e-4
    shift = torch.tensor([0.0, 0.5] * 192)
    noise = answers.noise_of_eager_decoding(model, lambda hidden: head(hidden) + shift, [5, 6], [7, 8, 9])
    assert noise == pytest.approx(0.5, abs=1e-4)
    assert answers.noise_of_eager_decoding(model, lambda hidden: head(hidden) + 3, [5, 6], [7, 8, 9]) < 1e-4

    def with_unlikely_changed(hidden):
        logits = head(hidden)
        return logits.scatter(-1, logits.argmin(-1, keepdim=True), -50.0)

    assert answers.noise_of_eager_decoding(model, with_unlikely_changed, [5, 6], [7, 8, 9]) < 1e-4
