"""The output head against the models' own logits, and losses in slices against one pass."""

import threading
from types import SimpleNamespace

import numpy
import pytest
import scipy.special
import torch
from limits import HUNG_SECONDS
from transformers import masking_utils

from quantharm.common.errors import UserError
from quantharm.scoring.forward import (
    background_scorer,
    check_ids,
    last_hidden_states,
    negative_log_likelihoods,
    output_head,
    slices_of,
)

IDS = [0, 17, 42, 300, 5, 5, 99, 120, 7]
KINDS = ["llama", "llama_tied", "mistral", "qwen2", "gemma2", "cohere", "granite", "gpt2", "gpt2_untied"]


@pytest.mark.parametrize("kind", KINDS)
def test_output_head_gives_the_models_own_logits(tiny, kind):
    model = tiny(kind)
    own = model(torch.tensor([IDS])).logits[0]
    logits = output_head(model)(last_hidden_states(model, IDS))
    assert logits.dtype == torch.float32
    assert logits.shape == (len(IDS), 384)
    torch.testing.assert_close(logits, own, rtol=1e-5, atol=1e-5)
    assert own.std() > 0.2  # logits that are all alike would prove nothing


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_those_of_a_plain_call(tiny, kind):
    """In inference mode, and without the library's look at the positions; both are left as they were."""
    model, look = tiny(kind), masking_utils.find_packed_sequence_indices
    plain = model.base_model(torch.tensor([IDS]), use_cache=False).last_hidden_state[0]
    states = last_hidden_states(model, IDS)
    assert torch.equal(states, plain)
    assert states.is_inference()
    assert not torch.is_inference_mode_enabled()
    assert masking_utils.find_packed_sequence_indices is look


@pytest.mark.parametrize(("kind", "setting"), [("gemma2", "final_logit_softcapping"), ("cohere", "logit_scale")])
def test_output_head_applies_what_the_architecture_does_to_its_logits(tiny, kind, setting):
    model = tiny(kind)
    hidden = last_hidden_states(model, IDS)
    plain = hidden @ model.get_output_embeddings().weight.t()
    logits = output_head(model)(hidden)
    assert (logits - plain).abs().max() > 0.5, f"{setting} makes no difference in this test"
    if kind == "gemma2":
        assert logits.abs().max() <= 5.0


def test_output_head_adds_a_bias(tiny):
    model = tiny("llama")
    model.lm_head.bias = torch.nn.Parameter(torch.linspace(-3, 3, 384))
    own = model(torch.tensor([IDS])).logits[0]
    torch.testing.assert_close(output_head(model)(last_hidden_states(model, IDS)), own, rtol=1e-5, atol=1e-5)


def test_output_head_rounds_its_inputs_as_compressed_tensors_does(tiny):
    """Its weight is plain floats once it is unpacked; its forward pass is the library's."""
    model = tiny("llama")
    head = model.get_output_embeddings()
    own = head.forward
    head.forward = lambda hidden: own((hidden * 4).round() / 4)
    head.quantization_scheme = SimpleNamespace(input_activations=SimpleNamespace(num_bits=8))
    logits = model(torch.tensor([IDS])).logits[0]
    assert torch.equal(output_head(model)(last_hidden_states(model, IDS)), logits)


def test_output_head_covers_a_padded_vocabulary(tiny, byte_tokenizer):
    model = tiny("qwen2")
    assert len(byte_tokenizer()) == 258  # the model has 384 entries: padded, as Qwen's and Phi's are
    assert output_head(model)(last_hidden_states(model, IDS)).shape[1] == 384


def test_output_head_is_float32_where_the_model_is_bfloat16(tiny):
    model = tiny("llama", torch.bfloat16)
    hidden = last_hidden_states(model, IDS)
    expected = hidden.double() @ model.lm_head.weight.double().t()
    assert (output_head(model)(hidden) - expected).abs().max() < 1e-4
    own = model(torch.tensor([IDS])).logits[0].double()
    assert (own - expected).abs().max() > 1e-3  # what bfloat16 logits would have lost


def test_an_architecture_that_changes_its_logits_otherwise_is_refused(tiny):
    model = tiny("llama")
    forward = model.forward

    def squared(*arguments, **keywords):
        output = forward(*arguments, **keywords)
        output.logits = output.logits * 1.1 + 1
        return output

    model.forward = squared
    with pytest.raises(UserError, match=r"LlamaForCausalLM changes its logits after the output head \(they differ by"):
        output_head(model)


@pytest.mark.parametrize(
    ("kind", "key", "neutral"),
    [("cohere", "logit_scale", 1.0), ("granite", "logits_scaling", 1.0), ("gemma2", "final_logit_softcapping", None)],
)
def test_the_guard_would_see_each_of_the_known_changes(tiny, kind, key, neutral):
    """Hidden from output_head but not from the model: refused, so a fourth kind of change would be as well."""
    model = tiny(kind)
    forward, value = model.forward, getattr(model.config, key)

    def with_its_own_setting(*arguments, **keywords):
        setattr(model.config, key, value)
        output = forward(*arguments, **keywords)
        setattr(model.config, key, neutral)
        return output

    model.forward = with_its_own_setting
    setattr(model.config, key, neutral)
    with pytest.raises(UserError, match="changes its logits"):
        output_head(model)


def test_losses_equal_float64_by_hand(tiny):
    model = tiny("gpt2_untied")
    hidden = last_hidden_states(model, IDS)[:-1]
    losses = negative_log_likelihoods(hidden, torch.tensor(IDS[1:]), output_head(model), 384)
    logits = model(torch.tensor([IDS])).logits[0, :-1].double().numpy()
    expected = -scipy.special.log_softmax(logits, axis=1)[range(8), IDS[1:]]
    assert losses.dtype == torch.float32
    numpy.testing.assert_allclose(losses.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("elements", [1, 384, 384 * 3, 384 * 5 + 1])
def test_slices_give_the_same_losses_as_one_pass(tiny, monkeypatch, elements):
    model = tiny("llama")
    ids = torch.randint(0, 384, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    hidden, targets, head = last_hidden_states(model, ids)[:-1], torch.tensor(ids[1:]), output_head(model)
    once = negative_log_likelihoods(hidden, targets, head, 384)
    monkeypatch.setattr("quantharm.scoring.forward.SLICE_ELEMENTS", elements)
    calls = []
    sliced = negative_log_likelihoods(hidden, targets, lambda h: calls.append(len(h)) or head(h), 384)
    assert len(calls) == -(-39 // max(1, elements // 384))
    torch.testing.assert_close(sliced, once, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("positions", "vocabulary"), [(1, 10), (256, 10), (257, 10), (2047, 262_144), (3, 2**25)])
def test_slices_cover_all_positions_once_and_stay_small(positions, vocabulary):
    parts = list(slices_of(positions, vocabulary))
    assert [i for part in parts for i in range(positions)[part]] == list(range(positions))
    largest = max(part.stop - part.start for part in parts)
    assert largest == 1 or largest * vocabulary <= 2**24


def test_a_model_with_nan_weights_gives_losses_that_are_not_finite(tiny):
    model = tiny("llama")
    head = output_head(model)
    model.model.norm.weight[3] = float("nan")
    hidden = last_hidden_states(model, IDS)[:-1]
    assert not torch.isfinite(negative_log_likelihoods(hidden, torch.tensor(IDS[1:]), head, 384)).any()


def test_hidden_states_do_not_depend_on_what_follows(tiny):
    model = tiny("mistral")
    short, long = last_hidden_states(model, IDS[:4]), last_hidden_states(model, IDS)
    assert long.shape == (len(IDS), 64)
    torch.testing.assert_close(long[:4], short, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], r"a prompt has no tokens; every prompt needs at least one"),
        ([3] * 129, r"a sequence has 129 tokens but the model's context is 128"),
        ([3, 384], r"token id 384 is not in the model's vocabulary"),
    ],
)
def test_sequences_that_the_model_cannot_take_are_refused(tiny, ids, message):
    with pytest.raises(UserError, match=message):
        check_ids(tiny("llama"), ids)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_sequences_at_the_limits_are_accepted(tiny, kind):
    check_ids(tiny(kind), [0] * 127 + [383])


CPU = torch.device("cpu")


def test_what_runs_beside_is_collected_in_order_and_little_waits():
    """Each waits for the one that comes after it to be handed over, if that is not to wait itself."""
    begun, collected, ahead = [], [], []
    handed_over = [threading.Event() for _ in range(30)]

    def compute(i: int) -> int:
        begun.append(i)
        if i % 3 and i + 1 < 30:
            assert handed_over[i + 1].wait(HUNG_SECONDS)
        return 10 * i

    with background_scorer(CPU, waiting=2) as in_background:
        for i in range(30):
            handed_over[i].set()
            in_background(compute, collected.append, i)
            ahead.append(i - len(collected))
    assert collected == [10 * i for i in range(30)]
    assert begun == list(range(30))
    assert max(ahead) <= 3  # two that wait, and the one that was just handed over


def test_small_results_of_a_gpu_may_wait_in_larger_numbers():
    """The host then launches the next pass while results of the last one are waited for."""
    begun, ahead = threading.Event(), []

    def collect(i: int) -> None:
        assert begun.wait(HUNG_SECONDS)
        collected.append(i)

    for small, most in ((False, 2), (True, 32)):
        collected: list[int] = []
        begun.clear()
        with background_scorer(torch.device("cuda"), small_results=small) as in_background:
            for i in range(most + 1):
                in_background(lambda i=i: i, collect, i)
            ahead.append(most + 1 - len(collected))
            begun.set()
        assert collected == list(range(most + 1))
    assert ahead == [3, 33]


def test_what_one_beside_raises_ends_the_loop_and_threads_are_as_before():
    def compute(i: int) -> int:
        if i == 3:
            raise UserError("the fourth")
        return i

    before, handed = torch.get_num_threads(), []

    def loop() -> None:
        with background_scorer(CPU) as in_background:
            for i in range(1000):
                in_background(compute, lambda _: None, i)
                handed.append(i)

    with pytest.raises(UserError, match="the fourth"):
        loop()
    assert len(handed) < 10
    assert torch.get_num_threads() == before


def test_the_last_one_beside_may_raise():
    with pytest.raises(ZeroDivisionError), background_scorer(CPU) as in_background:
        in_background(lambda: 1 / 0, print)


@pytest.mark.parametrize(("cores", "of_prompts", "of_windows"), [(1, 1, 1), (2, 1, 2), (3, 2, 3), (4, 3, 3), (8, 7, 7)])
def test_beside_takes_one_core_and_leaves_the_others(cores, of_prompts, of_windows, set_num_threads):
    """Of a few, passes over windows keep all."""
    set_num_threads(cores)
    for long_passes, left in ((False, of_prompts), (True, of_windows)):
        threads: list[int] = []
        with background_scorer(CPU, long_passes=long_passes) as in_background:
            in_background(torch.get_num_threads, threads.append)
            mine = torch.get_num_threads()
        assert (threads, mine, torch.get_num_threads()) == ([1], left, cores)
