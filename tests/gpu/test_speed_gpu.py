"""Synthetic weights, captured decode, its check, the device's meters."""

import gc
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from quantharm.common.errors import UserError
from quantharm.speed.answers import answer_suite
from quantharm.speed.benchmark import benchmark
from quantharm.speed.cuda_graph import captured_decoder, verify
from quantharm.speed.decoding import continue_greedily
from quantharm.speed.device_meters import EnergyMeter, copy_bandwidth, kernel_seconds
from quantharm.speed.static_decoder import StaticDecoder
from quantharm.speed.timings import random_prompt

PROMPTS = [[5, 900, 77, 12000], list(range(100, 190)), [31000 - 7 * i for i in range(40)], [9, 8, 7]]


def wait_for_the_gpu(_module, _inputs, output):
    """A forward hook that no capture can hold: the host reads a number."""
    return output * float(output.sum().isfinite())


def test_random_weights_are_finite_and_of_the_usual_scale(wide_source, load):
    folder = Path(wide_source["path"])
    assert wide_source["synthetic"]
    assert json.loads((folder / "synthetic.json").read_text())["parameters"] == 698_372_096
    with safe_open(next(folder.glob("*.safetensors")), framework="pt") as file:
        weight = file.get_tensor("model.layers.0.mlp.gate_proj.weight").float()
    assert weight.std().item() == pytest.approx(0.02, rel=0.01)
    model = load("baseline")
    logits = model(input_ids=random_prompt(model, 64)).logits.float()
    assert torch.isfinite(logits).all()
    assert 0.3 < logits.std().item() < 4


@pytest.mark.parametrize("method", ["baseline", "nf4", "awq", "int8-all"])
def test_captured_decode_equals_the_uncaptured_one_and_is_faster(load, method):
    result = benchmark(load(method), 64, 16, repetitions=5, seconds=0.5, prefill_tokens=[256])
    captured = result["captured"]
    assert "reason" not in captured, captured
    assert captured["check"]["same_tokens_but_ties"] == 15
    assert captured["decode_tokens_per_second"]["median"] > result["decode_tokens_per_second"]["median"]
    shares = result["roofline"]
    assert 0 < shares["eager_share_of_copy_bandwidth"] < shares["captured_share_of_copy_bandwidth"] < 1
    assert 0 < result["host_wait_share"] < 1


@pytest.mark.parametrize("method", ["baseline", "nf4"])
def test_captured_decode_may_be_compiled(load, method):
    captured = benchmark(load(method), 64, 16, repetitions=5, seconds=0.5, compile_too=True)["captured"]
    variants = {c["compiled"]: c for c in (captured, captured["other"])}
    assert "reason" not in variants[True], variants[True]
    assert "reason" not in variants[False], variants[False]
    rates = {compiled: c["decode_tokens_per_second"]["median"] for compiled, c in variants.items()}
    assert captured["compiled"] == (rates[True] > rates[False])


@pytest.mark.parametrize("method", ["baseline", "nf4", "awq"])
def test_prompts_of_different_lengths_are_answered_by_one_graph(load, method, monkeypatch):
    model = load(method)
    captures = []
    capture = StaticDecoder.capture
    monkeypatch.setattr(StaticDecoder, "capture", lambda *given: captures.append(1) or capture(*given))
    answers = answer_suite(model, PROMPTS, 24, set())
    assert (answers.decoding, answers.reason, captures) == ("captured", None, [1])
    assert answers.check["tokens"] == answers.check["same_tokens_but_ties"] == 4 * 24
    eager = [continue_greedily(model, ids, 24, set(), None).token_ids for ids in PROMPTS]
    assert [a.token_ids[0] for a in answers.continuations] == [ids[0] for ids in eager]  # one and the same prefill
    end = answers.continuations[1].token_ids[9]
    stopped = answer_suite(model, PROMPTS[1:2], 24, {end}).continuations[0]
    assert (stopped.token_ids[-1], stopped.stop_reason) == (end, "end_of_sequence")
    assert len(stopped.token_ids) <= 10


def test_layers_that_round_their_inputs_are_answered_captured_or_as_eagerly(load):
    """To 8 bits: two attention kernels then differ by so much that random weights choose other tokens."""
    model = load("int8-all")
    answers = answer_suite(model, PROMPTS, 24, set())
    if answers.decoding == "eager":
        assert re.search("other tokens than|logits are .* nats off", answers.reason), answers.reason
        eager = [continue_greedily(model, ids, 24, set(), None).token_ids for ids in PROMPTS]
        assert [a.token_ids for a in answers.continuations] == eager
    else:
        assert answers.check["tokens"] == answers.check["same_tokens_but_ties"] == 4 * 24


@pytest.mark.parametrize("method", ["baseline", "nf4", "awq"])
def test_prompts_are_read_by_graphs_where_they_share_a_length(load, method):
    model = load(method)
    prompts = [[(31 * i + 7 * k) % 32000 for k in range(20 + 9 * i)] for i in range(14)]  # 8 of 65 to 128 tokens
    answers = answer_suite(model, prompts, 24, set())
    assert (answers.decoding, answers.reason) == ("captured", None)
    read = answers.check["prompts_read"]
    assert (read["captured"], read["reason"]) == (8, None)
    assert answers.check["tokens"] == answers.check["same_tokens_but_ties"] == 14 * 24


def test_prompts_that_cannot_be_captured_are_read_eagerly(load):
    """Where a pass over several tokens waits for the GPU, and a step does not; the answers stay captured."""
    model = load("baseline")
    prompts = [list(range(5 + i, 90 + i)) for i in range(8)]
    expected = [continue_greedily(model, ids, 24, set(), None).token_ids[0] for ids in prompts]

    def wait(module, inputs, output):
        return wait_for_the_gpu(module, inputs, output) if output.shape[1] > 1 else output

    handle = model.model.norm.register_forward_hook(wait)
    answers = answer_suite(model, prompts, 24, set())
    handle.remove()
    assert (answers.decoding, answers.reason) == ("captured", None)
    read = answers.check["prompts_read"]
    assert (read["captured"], read["kl_nats_max"]) == (0, None)
    assert "CUDA error" in read["reason"]  # of the capture, not of a check
    assert [a.token_ids[0] for a in answers.continuations] == expected


def test_llm_int8_answers_eagerly_and_says_why(load):
    answers = answer_suite(load("int8"), PROMPTS[:1], 3, set())
    assert answers.decoding == "eager"
    assert answers.reason.startswith("LLM.int8 with a threshold")


@pytest.mark.parametrize("method", ["baseline", "nf4", "int8"])
def test_larger_batches_decode_more_tokens_a_second(load, method):
    batches = benchmark(load(method), 64, 16, 5, 0.0, batch_sizes=[1, 8])["batches"]
    assert [b["decoding"] for b in batches] == ["eager" if method == "int8" else "captured"] * 2, batches
    one, eight = (b["decode_tokens_per_second"]["median"] for b in batches)
    # Eight times where launches take the time, and eager rates, which are launches alone, double on a busy host.
    assert one < eight < (20 if method == "int8" else 9) * one
    assert 1e8 < batches[0]["peak_memory_bytes"] < batches[1]["peak_memory_bytes"]


def test_a_batch_too_large_for_the_gpu_is_null_and_the_process_goes_on(load):
    model = load("baseline")
    held = torch.empty(torch.cuda.mem_get_info()[0] - 2**31, dtype=torch.uint8, device="cuda")
    too_large = benchmark(model, 512, 8, 2, 0.0, batch_sizes=[1, 512])["batches"][1]
    del held
    assert too_large["decode_tokens_per_second"] is None
    assert too_large["reason"].startswith("out of memory")
    assert benchmark(model, 16, 8, 2, 0.0)["batches"][0]["reason"] is None


def test_llm_int8_with_a_threshold_gives_the_reason(load):
    decoder, reason = captured_decoder(load("int8"), torch.zeros((1, 4), dtype=torch.long, device="cuda"), 3)
    assert decoder is None
    assert reason.startswith("LLM.int8 with a threshold")


def test_the_check_catches_a_graph_that_reads_other_memory(load):
    """The head's weights move after the capture: the graph goes on with the old ones, the uncaptured step does not."""
    model = load("baseline")
    prompt = random_prompt(model, 16)
    decoder = StaticDecoder(model, 40)
    decoder.capture(prompt)
    assert verify(decoder, prompt, 8)["same_tokens"] == 8
    old = model.lm_head.weight.data
    model.lm_head.weight.data = old.roll(1, 0)
    with pytest.raises(UserError, match=r"other tokens|nats off"):
        verify(decoder, prompt, 8)
    model.lm_head.weight.data = old


def test_what_cannot_be_captured_ends_in_a_reason(load):
    model = load("baseline")
    model.model.norm.register_forward_hook(wait_for_the_gpu)
    decoder, reason = captured_decoder(model, random_prompt(model, 8), 3)
    assert decoder is None
    assert reason.startswith("the step could not be captured: ")
    model.model.norm._forward_hooks.clear()
    assert captured_decoder(model, random_prompt(model, 8), 3)[0] is not None  # and the process goes on


def test_a_benchmark_goes_on_where_no_step_can_be_captured(load):
    """Eagerly; random numbers are drawn and memory is given back after captures that failed, as before them."""
    model = load("baseline")
    model.model.norm.register_forward_hook(wait_for_the_gpu)
    result = benchmark(model, 16, 8, 2, 0.0, batch_sizes=[1, 2])
    assert result["captured"]["reason"].startswith("the step could not be captured: ")
    assert [batch["decoding"] for batch in result["batches"]] == ["eager", "eager"]
    assert result["roofline"]["copy_bytes_per_second"] > 1e11
    held = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    del held
    reserved = torch.cuda.memory_reserved()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= reserved - 2**30


def test_a_decoder_that_nobody_uses_gives_its_memory_back(load):
    """1 GB of keys and values at once, not at the next collection of cycles."""
    model = load("baseline")
    before = torch.cuda.memory_allocated()
    gc.disable()
    try:
        decoder = StaticDecoder(model, 2048, 64)
        decoder.capture(random_prompt(model, 8, 64))
        assert torch.cuda.memory_allocated() > before + 2**30
        del decoder
        assert torch.cuda.memory_allocated() < before + 2**28  # libraries keep their workspaces
    finally:
        gc.enable()


def test_meters():
    bandwidth = copy_bandwidth(torch.device("cuda"))
    assert 1e11 < bandwidth["copy_bytes_per_second"] < 2e13
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    assert 1e-4 < kernel_seconds(lambda: a @ a) < 0.1
    meter = EnergyMeter(torch.device("cuda"))
    if meter.reason:
        pytest.skip(meter.reason)
    before = meter.joules()
    for _ in range(600):
        a = (a @ a) * 1e-3
    torch.cuda.synchronize()
    assert meter.joules() > before
