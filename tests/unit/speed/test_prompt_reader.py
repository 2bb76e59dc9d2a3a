"""Prompts read at once into a fixed cache, as graphs read them on a GPU; here each pass is computed."""

import pytest
import torch

from quantharm.common.errors import UserError
from quantharm.speed import prompt_reader
from quantharm.speed.answers import answer_suite
from quantharm.speed.decoding import continue_greedily
from quantharm.speed.prompt_reader import PromptReader, by_shared_length
from quantharm.speed.static_decoder import StaticDecoder

PROMPTS = [[7, 100, 33], [250 - i for i in range(40)], [18, 90, 41, 12, 9, 301, 77]]
MANY = [[5 + i, 9, 40] for i in range(prompt_reader.FEWEST)]


def test_only_lengths_that_enough_prompts_share_have_a_graph():
    prompts = [[1] * n for n in (1, 63, 64, 65, 128, 190, 191, 600)]
    several = prompts * 2
    assert list(by_shared_length(several, 1000)) == [64]  # 6 of up to 64 tokens, 4 of up to 128
    assert list(by_shared_length(prompts * 6, 1000)) == [64, 128, 192]  # 640 is too long
    assert [len(p) for p in by_shared_length(several, 1000)[64]] == [1, 63, 64] * 2
    assert list(by_shared_length([[1] * 190] * 6, 191)) == [191]  # a cache that holds no more


def answered(model, prompts, new_tokens=9):
    answers = answer_suite(model, prompts, new_tokens, set())
    assert [a.token_ids for a in answers.continuations] == [
        continue_greedily(model, ids, new_tokens, set(), 128).token_ids for ids in prompts
    ]
    return answers


def test_a_prompt_that_shares_no_length_is_read_eagerly(tiny, steps_instead_of_graphs):
    answers = answered(tiny("llama"), [*MANY, list(range(5, 75))])
    assert answers.decoding == "captured"
    assert answers.check["prompts_read"]["captured"] == len(MANY)
    assert answers.check["prompts_read"]["kl_nats_max"] < 1e-6


def test_a_vocabulary_may_be_smaller_than_a_padding(tiny, steps_instead_of_graphs):
    prompts = [*MANY, list(range(4, 62))]  # the cache is as long as these need
    assert answered(tiny("llama", vocab_size=64), prompts).check["prompts_read"]["captured"] == 7


def test_few_prompts_are_not_worth_a_graph(tiny, steps_instead_of_graphs):
    answers = answered(tiny("llama"), PROMPTS)
    assert (answers.decoding, answers.check["prompts_read"]) == (
        "captured",
        {"captured": 0, "reason": None, "kl_nats_max": None},
    )


def test_a_pass_that_cannot_be_recorded_leaves_the_captured_step(tiny, steps_instead_of_graphs, monkeypatch):
    def refuse(*_):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(prompt_reader, "record_graph", refuse)
    answers = answered(tiny("llama"), MANY)
    assert answers.decoding == "captured"
    assert answers.check["prompts_read"]["captured"] == 0
    assert answers.check["prompts_read"]["reason"] == "operation not permitted when stream is capturing"


@pytest.mark.parametrize("spoiled", ["logits", "values"])
def test_a_prompt_that_is_read_wrongly_is_noticed(tiny, steps_instead_of_graphs, monkeypatch, spoiled):
    """Logits after the prompt, or the values that a later step reads."""
    right = PromptReader.compute

    def wrong(self, length):
        right(self, length)
        for changed in [self.logits] if spoiled == "logits" else [layer.values for layer in self.decoder.cache.layers]:
            changed.neg_()

    monkeypatch.setattr(PromptReader, "compute", wrong)
    answers = answered(tiny("llama"), MANY)
    assert answers.decoding == "captured"
    assert answers.check["prompts_read"]["captured"] == 0
    assert "nats off (of a prompt, limit" in answers.check["prompts_read"]["reason"]


@pytest.mark.parametrize("spoiled", ["padding", "rows"])
def test_the_shortest_and_the_longest_prompt_of_a_length_are_checked(
    tiny, steps_instead_of_graphs, monkeypatch, spoiled
):
    right = PromptReader.compute

    def wrong(self, length):
        right(self, length)
        if (int(self.last) < 5) if spoiled == "padding" else (int(self.last) > 50):
            self.logits.neg_()

    monkeypatch.setattr(PromptReader, "compute", wrong)
    prompts = [list(range(20, 40)), *MANY[:3], list(range(5, 60)), list(range(20, 50)), list(range(70, 90))]
    assert "of a prompt" in answered(tiny("llama"), prompts).check["prompts_read"]["reason"]


@pytest.mark.parametrize(("together", "captured"), [(True, 0), (False, 6)])
def test_inputs_rounded_by_one_scale_for_all_tokens_are_not_padded(tiny, steps_instead_of_graphs, together, captured):
    """The padding would move the scale, as torchao's and compressed-tensors' dynamic scale of a tensor."""

    def round_inputs(_, arguments):
        largest = arguments[0].abs().amax(None if together else -1, keepdim=True)
        return ((arguments[0] / largest * 127).round() / 127 * largest,)

    model = tiny("llama")
    for layer in model.model.layers:
        layer.mlp.down_proj.register_forward_pre_hook(round_inputs)
    read = answer_suite(model, MANY, 3, set()).check["prompts_read"]
    assert read["captured"] == captured
    assert (read["reason"] or "").startswith("what follows a prompt changes its logits by " if together else "")


@pytest.mark.parametrize("noise_at", [{1}, {1, 4, 6}])
def test_passes_that_differ_by_themselves_now_and_then_may_be_padded(
    tiny, steps_instead_of_graphs, monkeypatch, noise_at
):
    """By themselves: at first those of two paddings differ, and those of one agree by chance."""
    read_with_noise(tiny("llama"), noise_at, monkeypatch)


def test_what_moves_with_the_padding_each_time_is_no_noise(tiny, steps_instead_of_graphs, monkeypatch):
    with pytest.raises(UserError, match="what follows a prompt changes its logits by"):
        read_with_noise(tiny("llama"), {1, 4, 7}, monkeypatch)


def read_with_noise(model, noise_at: set[int], monkeypatch) -> None:
    """Checks the padding of a prompt; the passes of these numbers give slightly other logits."""
    right, passes = PromptReader.compute, []

    def noisy(self, length):
        right(self, length)
        passes.append(length)
        if len(passes) in noise_at:
            self.logits.add_(0.01 * torch.sin(torch.arange(self.logits.numel())))

    monkeypatch.setattr(PromptReader, "compute", noisy)
    decoder = StaticDecoder(model, 80)
    decoder.prefill(torch.tensor([PROMPTS[0]]))
    reader = PromptReader(decoder)
    reader.capture(PROMPTS[2])
    reader.check_padding(PROMPTS[2])


def test_an_answer_that_is_not_finite_spoils_no_other(tiny, steps_instead_of_graphs):
    """Its keys and values lie behind the padding of the next prompt, where a mask alone does not keep NaN away."""
    model, prompts = tiny("llama"), [*MANY[:3], list(range(5, 67)), *MANY[3:], list(range(100, 163))]
    tokens = continue_greedily(model, prompts[3], 9, set(), 128).token_ids
    spoiled = next(token for token in tokens[2:] if token > 168)  # from position 64 on; in no prompt, and no padding
    model.get_input_embeddings().weight[spoiled] = torch.nan
    answers = answered(model, prompts)
    assert [i for i, answer in enumerate(answers.continuations) if not answer.finite] == [3]
    assert (answers.decoding, answers.check["prompts_read"]["captured"]) == ("captured", 8)


def test_what_was_read_before_leaves_nothing_behind(tiny, steps_instead_of_graphs):
    """A short prompt after a long one, and the other way round."""
    model = tiny("mistral", sliding_window=4)
    prompts = [list(range(5, 65)), [7, 8], list(range(90, 150)), [3, 4, 5], [9], list(range(30, 80))]
    assert answered(model, prompts, 12).check["prompts_read"]["captured"] == 6


def test_padding_and_position_by_hand(tiny, steps_instead_of_graphs):
    decoder = StaticDecoder(tiny("llama"), 80)
    decoder.prefill(torch.tensor([PROMPTS[0]]))
    reader = PromptReader(decoder)
    reader.capture(PROMPTS[2])
    reader.read(PROMPTS[2])
    assert reader.tokens[0, :9].tolist() == [*PROMPTS[2], 77, 77]
    assert (int(decoder.position), {int(layer.cumulative_length) for layer in decoder.cache.layers}) == (7, {7})
    assert not decoder.cache.layers[0].keys[:, :, 64:].any()
    expected = decoder.model(torch.tensor([PROMPTS[2]])).logits[:, -1]
    torch.testing.assert_close(reader.logits, expected)
    assert int(decoder.token) == int(expected.argmax())
