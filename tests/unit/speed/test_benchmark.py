"""The benchmark's counts and figures, on a CPU; energy, captured decode and the profiler are tested on a GPU."""

import pytest
import torch

from quantharm.speed.benchmark import benchmark, cache_bytes, roofline, weights_read
from quantharm.speed.decoding import prefill
from quantharm.speed.device_meters import EnergyMeter, copy_bandwidth
from quantharm.speed.timings import joules_of_more_tokens


@pytest.fixture(autouse=True)
def small_copies(monkeypatch):
    monkeypatch.setattr("quantharm.speed.device_meters.COPY_BYTES", {"cpu": 2**20})


def test_benchmark_returns_the_counts_that_were_asked(tiny):
    model = tiny("llama")
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    result = benchmark(model, prompt_tokens=9, new_tokens=5, repetitions=6, seconds=0.0, prefill_tokens=[20])
    assert (result["prompt_tokens"], result["new_tokens"], result["repetitions"]) == (9, 5, 6)
    for timing in (result["prefill_seconds"], result["decode_tokens_per_second"], result["prefill"][0]["seconds"]):
        assert len(timing["values"]) == 6
        assert all(v > 0 for v in timing["values"])
        low, high = timing["ci95"]
        assert low <= timing["median"] <= high
    # eight repetitions with the two discarded, each a prefill and four tokens; eight longer prefills; one for the cache
    assert len(calls) == 8 * 5 + 8 + 1


def test_benchmark_lasts_as_long_as_asked(tiny):
    result = benchmark(tiny("llama"), prompt_tokens=4, new_tokens=3, repetitions=2, seconds=0.3)
    spent = sum(result["prefill_seconds"]["values"]) + sum(2 / r for r in result["decode_tokens_per_second"]["values"])
    assert result["repetitions"] > 2
    assert spent > 0.2


def test_benchmark_decodes_end_tokens_like_any_other(tiny):
    model = tiny("llama")
    model.lm_head.weight.zero_()  # argmax of equal logits is 0, which is made the end token
    model.generation_config.eos_token_id = model.config.eos_token_id = 0
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    benchmark(model, 4, 6, 2, 0.0)
    assert len(calls) == (2 + 2) * (1 + 5) + 1  # all six tokens in every repetition, not the first one alone


def test_beside_a_captured_rate_the_eager_one_is_timed_as_often_as_an_interval_needs(tiny, monkeypatch):
    captured = {"decode_tokens_per_second": {"median": 9.0}, "repetitions": 10, "compiled": False}
    monkeypatch.setattr("quantharm.speed.benchmark.fastest_captured", lambda *_, **__: captured)
    model, calls = tiny("llama"), []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    result = benchmark(model, 4, 40, 10, 0.2)
    assert result["repetitions"] == len(result["decode_tokens_per_second"]["values"]) == 6
    assert (result["new_tokens"], result["eager_new_tokens"]) == (40, 16)
    assert len(calls) == 8 * 16 + 12 + 1  # eight repetitions, of the prompt alone twelve, one for the cache
    assert len(result["prefill_seconds"]["values"]) == 10


def test_joules_of_fewer_tokens_are_those_of_as_many_as_the_captured_ones():
    """By hand: 60 J a prefill and 5 J a step; 16 tokens take 15 steps, 64 take 63."""
    eager, first = {"joules_per_new_token": (60 + 15 * 5) / 16}, {"joules": 60.0}
    assert joules_of_more_tokens(eager, first, 16, 64) == pytest.approx((60 + 63 * 5) / 64)
    assert joules_of_more_tokens(eager, first, 16, 16) == (60 + 15 * 5) / 16
    assert joules_of_more_tokens({"joules_per_new_token": None}, {"joules": None}, 16, 64) is None


def test_lengths_are_cut_to_the_context(tiny):
    result = benchmark(tiny("llama"), 500, 6, 2, 0.0, prefill_tokens=[64, 2048, 4096])  # a context of 128
    assert result["prompt_tokens"] == 122
    assert [p["prompt_tokens"] for p in result["prefill"]] == [64, 128]


def test_what_a_cpu_cannot_measure_is_null_with_the_reason(tiny):
    result = benchmark(tiny("llama"), 4, 3, 2, 0.0)
    assert result["captured"] == {"reason": "CUDA graphs need a GPU", "compiled": False}
    assert result["joules_per_new_token"] is None
    assert result["energy_reason"] == "measured on GPUs only"
    assert result["host_wait_share"] is None
    assert result["roofline"]["captured_bytes_per_second"] is None


def test_bytes_of_a_token_by_hand(tiny):
    model = tiny("llama")  # float32; vocabulary 384, width 64, 2 layers, 2 key-value heads of 16
    everything = 4 * sum(p.numel() for p in model.parameters()) + 4 * sum(b.numel() for b in model.buffers())
    assert weights_read(model) == everything - 4 * 64 * (384 - 1)
    tied = tiny("llama_tied")
    everything = 4 * sum(p.numel() for p in tied.parameters()) + 4 * sum(b.numel() for b in tied.buffers())
    assert weights_read(tied) == everything  # the table is the output head
    _, cache = prefill(model, torch.tensor([[1, 2, 3]]))
    assert cache_bytes(cache) == (3 * 2 * 2 * 2 * 16 * 4, 0)  # tokens, layers, keys and values, heads, width, bytes


def test_roofline_by_hand(tiny, monkeypatch):
    monkeypatch.setattr("quantharm.speed.benchmark.copy_bandwidth", lambda _: {"copy_bytes_per_second": 1e9})
    model = tiny("llama")
    bounds = roofline(model, torch.tensor([[1, 2, 3, 4]]), 10, 20.0, None)
    moved = weights_read(model) + 512 * (4 + 5)  # 2 layers, keys and values, 2 heads of 16, 4 bytes
    assert bounds["bytes_per_token"] == moved
    assert bounds["eager_bytes_per_second"] == pytest.approx(20 * moved)
    assert bounds["eager_share_of_copy_bandwidth"] == pytest.approx(20 * moved / 1e9)
    assert bounds["captured_share_of_copy_bandwidth"] is None


def test_copy_bandwidth_of_this_machine():
    before = torch.get_rng_state()
    bandwidth = copy_bandwidth(torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before)  # which a GPU's may not advance after a capture that failed
    assert bandwidth["copy_bytes"] == 2**20
    assert 1e8 < bandwidth["copy_bytes_per_second"] < 1e13


def test_no_energy_on_a_cpu():
    meter = EnergyMeter(torch.device("cpu"))
    assert (meter.joules(), meter.reason) == (None, "measured on GPUs only")
