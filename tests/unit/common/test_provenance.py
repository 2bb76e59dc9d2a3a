"""Where a store was filled, by all that decides how products are rounded."""

import pytest

from quantharm.common.provenance import device_name, filled_here, how_computed, versions


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
