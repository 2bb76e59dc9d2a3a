"""Passes over prompts of many lengths run no attention kernel that plans for each length; those of one length may."""

import torch

from quantharm.models.loading import load_cell
from quantharm.speed import benchmark as benchmark_module
from quantharm.speed.benchmark import benchmark
from quantharm.speed.static_decoder import StaticDecoder


def planned() -> bool:
    return torch.backends.cuda.cudnn_sdp_enabled()


def test_only_steps_and_benchmarks_of_one_length_plan_their_attention(baseline_cell, monkeypatch):
    torch.backends.cuda.enable_cudnn_sdp(True)
    model = load_cell(baseline_cell.record, "cpu")
    assert not planned()  # every stage loads its model so, then reads prompts of many lengths

    passes = []
    model.register_forward_pre_hook(lambda *_: passes.append(planned()))
    decoder = StaticDecoder(model, 16)
    with torch.no_grad():
        decoder.prefill(torch.tensor([[5, 6, 7]]))
        assert passes == [False]
        decoder.decode(2)
        assert passes == [False, True, True]
        assert not planned()

        monkeypatch.setattr(benchmark_module, "roofline", lambda *_: {})
        passes.clear()
        benchmark(model, 4, 2, 3, 0.0)
    assert passes
    assert all(passes)
    assert not planned()
