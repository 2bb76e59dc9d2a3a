"""Where a store was filled, by all that decides how products are rounded."""

import importlib.metadata
import sys
from types import SimpleNamespace

import pytest

from quantharm.common.provenance import device_name, filled_here, how_computed, provenance, version_of, versions


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


def test_the_version_is_of_the_module_that_runs(monkeypatch):
    """Its folder may stand in front of the installed one's, without a word on its version."""
    installed = importlib.metadata.version("tqdm")
    for running, recorded in (("0.1", "0.1"), (installed, installed), (f"{installed}+cpu", installed)):
        monkeypatch.setitem(sys.modules, "tqdm", SimpleNamespace(__version__=running))
        assert version_of("tqdm") == recorded
    monkeypatch.delitem(sys.modules, "tqdm")
    assert version_of("tqdm") == installed
    monkeypatch.setitem(sys.modules, "awq", SimpleNamespace(__version__="7"))
    assert version_of("autoawq") == "7"
    assert version_of("no-package") is None


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
