"""Captured decoding without a GPU."""

import pytest

from quantharm.speed import cuda_graph, prompt_reader, static_decoder
from quantharm.speed.fixed_cache import why_no_fixed_cache


@pytest.fixture
def steps_instead_of_graphs(monkeypatch):
    """`captured` on a CPU: nothing is recorded, so that what would be replayed is computed."""
    monkeypatch.setattr(cuda_graph, "why_not_captured", why_no_fixed_cache)
    for module in (static_decoder, prompt_reader):
        monkeypatch.setattr(module, "record_graph", lambda *_: None)
