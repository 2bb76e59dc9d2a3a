"""Sizes and memory as the report labels them: in the dtype that was loaded, with loading told from generating."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from quantharm.reporting.results import Cell
from quantharm.reporting.tables.cost import memory_table, sizes_table, stored_types_table


def cell(method: str, dtype: str, bits: float | None, device: str = "cpu"):
    """1,000 parameters, 800 of them in matrices that a method quantizes."""
    width = {"bfloat16": 2, "float32": 4}[dtype]
    weight_bytes = 1000 * width if bits is None else 200 * width + 800 * bits / 8
    record = {
        "dtype": "bfloat16",  # what was asked for
        "loaded_dtype": dtype,
        "parameters": 1000,
        "weight_bytes": weight_bytes,
        "bits_per_weight": bits,
        "bits_per_weight_formula": bits,
        "quantized_weights": 0 if bits is None else 800,
        "quantized_modules": [] if bits is None else ["a"],
        "kept_modules": ["a"] if bits is None else [],
    }
    row = record | {"checkpoint_bytes": weight_bytes, "compression": 1.0, "saved_bytes": 0}
    generation = {
        "memory": {"peak_bytes": 10**9, "host_peak_bytes": 2 * 10**9},
        "provenance": {"device_type": device},
    }
    return Cell(method, row, record, {}, {}, generation, {"failed": []}, None, Path())


def results(dtype: str, device: str = "cpu"):
    cells = [
        cell("baseline", dtype, None, device),
        cell("nf4", dtype, 4.5, device),
        cell("noise-0.3", dtype, None, device),
    ]
    return SimpleNamespace(baseline=cells[0], cells=cells, methods=cells[1:])


def column(table, key: str) -> list:
    place = [c.key for c in table.columns].index(key)
    return [row[place] for row in table.rows]


@pytest.mark.parametrize(("dtype", "bits"), [("bfloat16", 16), ("float32", 32)])
def test_what_is_not_quantized_has_the_bits_of_its_dtype(dtype, bits):
    shown = [c.text for c in column(sizes_table(results(dtype)), "bits_per_weight")]
    assert shown == [f"{bits}, not quantized", "4.500", f"{bits}, not quantized"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_bytes_by_the_formula_are_those_of_the_loaded_dtype(dtype):
    made = results(dtype)
    by_formula = [c.value for c in column(sizes_table(made), "formula_bytes")]
    assert by_formula == pytest.approx([c.quantization["weight_bytes"] for c in made.cells])


def test_a_peak_that_includes_loading_is_not_called_one_of_generating():
    titles = {
        device: [c.label for c in memory_table(results("bfloat16", device)).columns] for device in ("cpu", "cuda")
    }
    assert "Peak of the process" in titles["cpu"]
    assert not any("when generating" in title for title in titles["cpu"])
    assert "GPU peak when generating" in titles["cuda"]


def test_methods_that_mix_types_say_which_layers_have_which():
    def stored(matrices, bits):
        return {"matrices": matrices, "weights": 100 * matrices, "bits_per_weight": bits}

    made = results("bfloat16")
    made.cells[1].quantization["by_layer_kind"] = {
        "q_proj": {"Q4_K": stored(4, 4.5)},
        "v_proj": {"Q4_K": stored(1, 4.5), "Q6_K": stored(3, 6.5625)},
    }
    one_type = {"q_proj": {"4.28 bits": stored(4, 4.28)}, "k_proj": {"4.41 bits": stored(4, 4.41)}}  # no row
    made.cells[2].quantization["by_layer_kind"] = one_type
    (row,) = stored_types_table(made).rows
    assert [cell.text for cell in row] == ["nf4", "Q4_K", "Q4_K (1), Q6_K (3)"]
    assert [cell.aside for cell in row] == ["", "4.500 bits", "6.047 bits"]
    del made.cells[1].quantization["by_layer_kind"]
    assert stored_types_table(made).rows == []
