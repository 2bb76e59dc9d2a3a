"""Numbers on their way from a GPU; the GPU is a stand-in."""

from types import SimpleNamespace

import torch

from quantharm.scoring.host_copy import HostCopy


def test_a_copy_is_its_own():
    numbers = torch.tensor([1.0, 2.0])
    copy = HostCopy(numbers)
    numbers.zero_()
    assert copy.tensor().tolist() == [1, 2]


def test_the_event_is_recorded_where_the_copy_runs(monkeypatch):
    """On the tensor's own GPU, which need not be the current one; waiting comes before the numbers are given."""
    happened = []

    class Event:
        def record(self, stream):
            happened.append(f"recorded on {stream}")

        def synchronize(self):
            happened.append("waited")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the stream of {device}")
    there = SimpleNamespace(is_cuda=True, device="cuda:1", to=lambda *_, **__: torch.tensor([3.0]))
    copy = HostCopy(there)
    assert happened == ["recorded on the stream of cuda:1"]
    assert copy.tensor().tolist() == [3]
    assert happened[1:] == ["waited"]
