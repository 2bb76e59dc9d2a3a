"""Rates of batches: what is counted, how it was decoded, and memory that does not suffice."""

import pytest
import torch

from quantharm.speed import batches, benchmark, cuda_graph
from quantharm.speed.device_meters import EnergyMeter, PeakMemory
from quantharm.speed.fixed_cache import why_no_fixed_cache
from quantharm.speed.static_decoder import StaticDecoder
from quantharm.speed.timings import random_prompt

METER = EnergyMeter(torch.device("cpu"))


@pytest.fixture(autouse=True)
def small_copies(monkeypatch):
    monkeypatch.setattr("quantharm.speed.device_meters.COPY_BYTES", {"cpu": 2**20})


def test_the_benchmark_times_each_batch_and_takes_batch_1_from_what_it_has(tiny):
    timings = benchmark.benchmark(tiny("llama"), 6, 4, 6, 0.0, batch_sizes=[3, 1])
    one, three = timings["batches"]
    assert (one["batch_size"], three["batch_size"]) == (1, 3)
    assert one["decode_tokens_per_second"] == timings["decode_tokens_per_second"]
    assert one["prefill_seconds"] == timings["prefill_seconds"]
    for record in (one, three):
        assert (record["decoding"], record["decoding_reason"]) == ("eager", "CUDA graphs need a GPU")
        assert (record["prompt_tokens"], record["reason"]) == (6, None)
        assert record["peak_memory_bytes"] > 1e7
        assert record["decode_tokens_per_second"]["ci95"]


def test_rates_count_the_tokens_of_all_sequences(tiny, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("quantharm.speed.timings.time.perf_counter", lambda: float(next(clock)))
    model = tiny("llama")
    record = batches.batch_benchmark(model, random_prompt(model, 5, 7), 4, METER)
    assert record["decode_tokens_per_second"]["values"] == [7 * 3.0] * 6  # three steps, by this clock in a second
    assert record["prefill_seconds"]["values"] == [1.0] * 6


def test_a_batch_is_decoded_captured_where_its_graph_passes(tiny, monkeypatch):
    monkeypatch.setattr(cuda_graph, "why_not_captured", why_no_fixed_cache)
    monkeypatch.setattr(StaticDecoder, "capture", StaticDecoder.prefill)
    model = tiny("llama")
    record = batches.batch_benchmark(model, random_prompt(model, 5, 4), 6, METER)
    assert (record["decoding"], record["decoding_reason"]) == ("captured", None)
    assert len(record["decode_tokens_per_second"]["values"]) == len(record["prefill_seconds"]["values"]) == 6


def test_out_of_memory_at_a_batch_is_null_with_the_reason(tiny):
    model = tiny("llama")

    def too_large(_, arguments, keywords):
        if len(keywords["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …")

    model.register_forward_pre_hook(too_large, with_kwargs=True)
    records = benchmark.benchmark(model, 6, 4, 6, 0.0, batch_sizes=[1, 2, 8])["batches"]
    assert [record["reason"] for record in records] == [None, None, "out of memory (CUDA out of memory)"]
    assert [records[2][key] for key in batches.NOT_MEASURED] == [None] * 5
    assert records[2]["batch_size"] == 8


def test_other_faults_at_a_batch_are_not_hidden(tiny):
    model = tiny("llama")
    model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("a kernel failed")))
    with pytest.raises(RuntimeError, match="a kernel failed"):
        batches.batch_benchmark(model, torch.zeros((2, 4), dtype=torch.long), 4, METER)


def test_the_first_row_of_every_batch_is_the_prompt_of_batch_1(tiny):
    model = tiny("llama")
    assert torch.equal(random_prompt(model, 9, 5)[:1], random_prompt(model, 9))


def test_peak_memory_counts_from_its_start():
    torch.ones(2**26)  # 256 MB
    peak = PeakMemory(torch.device("cpu"))
    if not peak.known:
        pytest.skip("this system does not let a process forget its peak")
    small = peak.bytes()
    torch.ones(2**26)
    assert peak.bytes() - small > 2e8
