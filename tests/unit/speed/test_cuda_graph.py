"""Decoding over a cache of fixed size equals decoding over a growing one; capturing itself is tested on a GPU."""

import contextlib
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch

from quantharm.common.errors import UserError
from quantharm.engines.quantized_cache import serve_from_cache
from quantharm.speed import cuda_graph
from quantharm.speed.cuda_graph import beyond_ties, captured_decoder, eager_logits, largest_kl, verify, why_not_captured
from quantharm.speed.decoding import continue_greedily
from quantharm.speed.recording import record_graph
from quantharm.speed.static_decoder import StaticDecoder

PROMPT = torch.tensor([[5, 9, 40, 7, 200]])


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "gpt2"])
def test_a_fixed_cache_gives_the_tokens_and_logits_of_a_growing_one(tiny, kind):
    model = tiny(kind)
    decoder = StaticDecoder(model, length=20)
    tokens, logits = decoder.trajectory(PROMPT, 9, replay=False)
    expected = continue_greedily(model, PROMPT[0].tolist(), 10, set(), None).token_ids
    assert tokens[:, 0].tolist() == expected
    assert torch.allclose(logits, eager_logits(model, PROMPT, tokens[:-1])[1:], atol=1e-5)


@pytest.mark.parametrize("window", [None, 4])
def test_prompts_of_a_batch_are_continued_as_each_alone(tiny, window):
    model = tiny("mistral", sliding_window=window)
    prompts = torch.tensor([[5, 9, 40, 7, 200], [3, 3, 80, 2, 11], [17, 250, 6, 91, 30]])
    decoder = StaticDecoder(model, length=20, batch=3)
    tokens, _ = decoder.trajectory(prompts, 9, replay=False)
    for row, prompt in enumerate(prompts.tolist()):
        assert tokens[:, row].tolist() == continue_greedily(model, prompt, 10, set(), None).token_ids
    assert verify(decoder, prompts, 6)["same_tokens"] == 18


def test_it_can_be_used_again(tiny):
    decoder = StaticDecoder(tiny("llama"), length=20)
    first = decoder.trajectory(PROMPT, 6, replay=False)
    decoder.trajectory(PROMPT.flip(1), 8, replay=False)
    again = decoder.trajectory(PROMPT, 6, replay=False)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


def test_the_check_passes_what_is_equal(tiny):
    check = verify(StaticDecoder(tiny("llama"), length=20), PROMPT, 6)
    assert {check[key] for key in check if key.endswith(("steps", "tokens", "ties"))} == {6}
    assert check["kl_nats_max"] == 0
    assert check["eager_kl_nats_max"] < 1e-6


class Spoiled(StaticDecoder):
    """Replaying gives something else than stepping, as a graph would that reads memory of others."""

    def decode(self, steps, replay=True):
        super().decode(steps, replay)
        if replay:
            self.spoil()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda d: d.token.add_(1).remainder_(300), r"other tokens than uncaptured in [1-6] of 6 steps"),
        (lambda d: d.logits[0, :50].add_(1.0), r"kl_nats_max, limit 0.01"),
        (lambda d: d.logits.fill_(float("nan")), "nan nats off"),
    ],
)
def test_the_check_catches_a_replay_that_differs(tiny, spoil, words):
    decoder = Spoiled(tiny("llama"), length=20)
    decoder.spoil = lambda: spoil(decoder)
    with pytest.raises(UserError, match=words):
        verify(decoder, PROMPT, 6)


def test_the_check_catches_steps_that_differ_from_eager_decoding(tiny):
    decoder = StaticDecoder(tiny("llama"), length=20)
    decoder.mask = lambda rows, _: torch.zeros((1, 1, len(rows), 20))  # everything may be seen, empty places too
    with pytest.raises(UserError, match="eager_kl_nats_max"):
        verify(decoder, PROMPT, 6)


class Varying(StaticDecoder):
    """Two passes differ, as with kernels that add in varying order, and a replay by `spoiled` more."""

    noise = spoiled = 0.0

    def trajectory(self, prompt, steps, replay=True, fed=None):
        tokens, logits = super().trajectory(prompt, steps, replay, fed)
        self.passes = getattr(self, "passes", 0) + 1
        moved = (self.noise if self.passes % 2 else -self.noise) + (self.spoiled if replay else 0.0)
        logits[..., ::2] += moved
        return tokens, logits


@pytest.mark.parametrize(("noise", "spoiled", "passes"), [(0.2, 0.0, True), (0.2, 0.7, False), (1.0, 0.0, False)])
def test_what_two_uncaptured_passes_differ_by_widens_the_limit(tiny, monkeypatch, noise, spoiled, passes):
    monkeypatch.setattr(cuda_graph, "beyond_ties", lambda *_: 0)  # of the logits alone
    decoder = Varying(tiny("llama"), length=20)
    decoder.noise, decoder.spoiled = noise, spoiled
    if passes:
        check = verify(decoder, PROMPT, 6)
        assert check["kl_nats_max"] > cuda_graph.KL_LIMIT
        assert check["kl_nats_limit"] == cuda_graph.NOISE_FACTOR * check["kl_nats_max_of_two_uncaptured"] > 0.01
    else:
        with pytest.raises(UserError, match="nats off"):
            verify(decoder, PROMPT, 6)


class Moved(StaticDecoder):
    """Steps over the fixed cache, captured or not, differ from eager decoding by as much."""

    moved = 0.0

    def trajectory(self, prompt, steps, replay=True, fed=None):
        tokens, logits = super().trajectory(prompt, steps, replay, fed)
        logits[..., ::2] += self.moved
        return tokens, logits


@pytest.mark.parametrize(("moved", "of_kernels", "passes"), [(0.4, 0.3, True), (0.4, 0.0, False), (1.0, 1.0, False)])
def test_what_another_attention_kernel_changes_widens_the_limit_of_eager_decoding(
    tiny, monkeypatch, moved, of_kernels, passes
):
    def by_the_kernel(*given):
        logits = eager_logits(*given)
        if not torch.backends.cuda.flash_sdp_enabled():  # only the plain kernel is
            logits[..., ::2] += of_kernels
        return logits

    monkeypatch.setattr(cuda_graph, "beyond_ties", lambda *_: 0)  # of the logits alone
    monkeypatch.setattr(cuda_graph, "eager_logits", by_the_kernel)
    decoder = Moved(tiny("llama"), length=20)
    decoder.moved = moved
    if passes:
        check = verify(decoder, PROMPT, 6)
        assert check["kl_nats_max"] == 0
        assert check["kl_nats_limit"] == cuda_graph.KL_LIMIT < check["eager_kl_nats_max"]
        assert check["eager_kl_nats_limit"] == cuda_graph.NOISE_FACTOR * check["eager_kl_nats_max_of_two_kernels"]
    else:
        with pytest.raises(UserError, match="eager_kl_nats_max, limit 0.01" if not of_kernels else "limit 0.1"):
            verify(decoder, PROMPT, 6)
    assert torch.backends.cuda.flash_sdp_enabled()


def test_on_a_cpu_nothing_is_captured_and_the_reason_is_given(tiny):
    assert captured_decoder(tiny("llama"), PROMPT, 3) == (None, "CUDA graphs need a GPU")


def pretend_gpu(model):
    model.get_input_embeddings = lambda: SimpleNamespace(weight=SimpleNamespace(device=torch.device("cuda")))
    return model


def test_reasons_that_are_known_beforehand(tiny):
    model = pretend_gpu(tiny("mistral"))
    assert why_not_captured(model) is None
    model.config.sliding_window = 64
    assert why_not_captured(model) is None
    layer = torch.nn.Module()
    layer.__class__ = type("Linear8bitLt", (torch.nn.Module,), {})
    model.add_module("quantized", layer)
    layer.state = SimpleNamespace(threshold=0.0)
    assert why_not_captured(model) is None
    layer.state.threshold = 6.0
    assert "LLM.int8 with a threshold" in why_not_captured(model)


def test_a_cache_that_cannot_be_of_fixed_size_is_a_reason(tiny, monkeypatch):
    model = pretend_gpu(tiny("llama"))
    assert why_not_captured(model) is None
    monkeypatch.setattr(cuda_graph, "why_no_fixed_cache", lambda asked: "recurrent states" if asked is model else None)
    assert why_not_captured(model) == "recurrent states"


def test_quantized_keys_and_values_are_not_measured_by_others(tiny):
    model = tiny("llama")
    serve_from_cache(model, {"backend": "fp8"})
    pretend_gpu(model)
    assert why_not_captured(model).startswith("the method's `kv_cache:` quantizes keys and values")


def test_a_step_that_cannot_be_recorded_gives_a_reason(tiny, monkeypatch):
    monkeypatch.setattr(cuda_graph, "why_not_captured", lambda *_: None)

    def refuse(*_):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(StaticDecoder, "capture", refuse)
    decoder, reason = captured_decoder(tiny("llama"), PROMPT, 3)
    assert decoder is None
    assert reason == "the step could not be captured: operation not permitted when stream is capturing"


def test_a_capture_that_failed_is_over_for_the_allocator(monkeypatch):
    """It was told of the capture's memory pool; the process goes on on its own stream, and collects garbage again."""
    happened = []
    stream = SimpleNamespace(wait_stream=lambda _: None)
    for name, instead in {
        "current_stream": lambda: stream,
        "Stream": lambda: stream,
        "stream": contextlib.nullcontext,
        "CUDAGraph": SimpleNamespace,
        "graph": lambda _, pool: contextlib.nullcontext(happened.append(f"capture into {pool}")),
        "graph_pool_handle": lambda: (0, 7),
        "current_device": lambda: 2,
        "set_stream": lambda given: happened.append("own stream" if given is stream else "another"),
    }.items():
        monkeypatch.setattr(torch.cuda, name, instead)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *given: happened.append(f"ended {given}"))

    def compute():
        assert gc.isenabled() == (not happened)  # not within a capture
        if happened:
            raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        record_graph(compute, 1)
    assert happened == ["capture into (0, 7)", "ended (2, (0, 7))", "own stream"]
    assert gc.isenabled()
    happened.clear()
    beside = SimpleNamespace(pool=lambda: (0, 9))
    assert record_graph(lambda: None, 1, beside) is not beside
    assert happened == ["capture into (0, 9)", "own stream"]
    assert gc.isenabled()


def test_a_decoder_that_nobody_uses_holds_no_memory(tiny):
    """At once, not at the next collection of cycles: a batch's peak memory must not hold the batch before."""
    decoder = StaticDecoder(tiny("llama"), 20)
    decoder.prefill(PROMPT)
    decoder.decode(2)
    keys = weakref.ref(decoder.cache.layers[0].keys)
    gc.disable()
    try:
        del decoder
        assert keys() is None
    finally:
        gc.enable()


def test_largest_kl_by_hand():
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
    expected = float((p.double() * (p.double() / q.double()).log()).sum())
    assert largest_kl(torch.stack([p.log(), p.log()]), torch.stack([p.log(), q.log()])) == pytest.approx(expected)


def test_choices_that_tie_are_the_same():
    logits = torch.tensor([[4.0, 3.97, 0.0], [4.0, 3.9, 0.0], [4.0, 4.0, -4.0], [float("nan"), 1.0, 0.0]])
    assert beyond_ties(torch.tensor([1, 1, 1, 1]), logits[:4]) == 2  # 0.03 and 0 are roundings of 4, 0.1 is not; nan
    assert beyond_ties(torch.tensor([0, 0, 0]), logits[:3]) == 0
    assert beyond_ties(torch.tensor([1, 1, 1]), logits[:3], noise=0.06) == 0
