"""Where a store was filled, by all that decides how products are rounded."""

import os
import sys

import pytest
import torch

from quantharm.common.provenance import (
    OF_PRODUCTS,
    device_name,
    filled_here,
    how_computed,
    provenance,
    threads_of_process,
)
from quantharm.common.versions import versions
from quantharm.common.warm_start import FORKED


@pytest.fixture
def store() -> dict:
    return {"device": device_name("cpu"), "versions": versions(), **how_computed("cpu", "bfloat16")}


def test_a_store_of_this_process_was_filled_here(store):
    assert filled_here(store, "cpu")


@pytest.mark.parametrize("key", ["device", "versions", "instruction_set", "onednn_instruction_set"])
def test_another_device_library_or_instruction_set_is_elsewhere(store, key):
    """One processor rounds in several ways: without its 16-bit instructions it is 2e-4 nats from itself."""
    assert not filled_here(store | {key: "another"}, "cpu")
    del store[key]
    assert not filled_here(store, "cpu")


def test_packages_of_one_method_are_recorded_apart(tmp_path, monkeypatch):
    """Only its jobs see them, and all cells of a run are to have the same versions of the others."""
    before = versions()
    assert "compressed-tensors" in before
    described = tmp_path / "auto_round-0.16.1.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: auto-round\nVersion: 0.16.1\n")
    monkeypatch.syspath_prepend(tmp_path)
    versions.cache_clear()
    assert versions() == before
    assert provenance("cpu")["versions_of_method"]["auto-round"] == "0.16.1"


def test_a_warm_start_is_recorded(monkeypatch):
    """The peak of its memory lacks pages of libraries that it shares with the server."""
    monkeypatch.delenv(FORKED, raising=False)
    assert "warm_start" not in provenance("cpu")
    monkeypatch.setenv(FORKED, "1")
    assert provenance("cpu")["warm_start"] is True


def test_threads_are_those_that_pytorch_uses(monkeypatch):
    """OMP_NUM_THREADS may hold a number for each level, or nothing, and a process may be bound to some of the cores."""
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    torch.set_num_threads(before + 2)
    assert threads_of_process() == before + 2
    torch.set_num_threads(before)
    monkeypatch.delitem(sys.modules, "torch")
    for stated, threads in (("7", 7), ("3,2", 3), ("", len(os.sched_getaffinity(0)))):
        monkeypatch.setenv("OMP_NUM_THREADS", stated)
        assert threads_of_process() == threads


def test_variables_that_decide_how_libraries_multiply_are_recorded(monkeypatch):
    """MKL_CBWR=COMPATIBLE gives other last digits, and no instruction set that is recorded shows it."""
    for name in OF_PRODUCTS:
        monkeypatch.delenv(name, raising=False)
    assert "environment" not in provenance("cpu")
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    assert provenance("cpu")["environment"] == {"MKL_CBWR": "COMPATIBLE"}
