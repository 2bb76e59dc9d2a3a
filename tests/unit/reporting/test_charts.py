"""What charts draw, without drawing it."""

from pathlib import Path
from types import SimpleNamespace

import pandas
import pytest

from quantharm.reporting.charts.divergence import kl_distribution
from quantharm.reporting.charts.quality import lower_left, size_key
from quantharm.reporting.results import Cell


def cell(method: str, loaded: int, on_disk: int, kl: float, unpacked: bool = False):
    row = {"weight_bytes": loaded, "checkpoint_bytes": on_disk, "kl_nats_mean": kl}
    return Cell(method, row, {"held_dequantized": unpacked}, {}, {}, {}, {"failed": []}, None, Path())


def test_a_format_that_is_unpacked_as_it_is_loaded_has_the_size_of_its_file():
    packed, gguf = cell("nf4", 40, 50, 0.3), cell("gguf", 160, 45, 0.2, unpacked=True)
    assert size_key([packed]) == "weight_bytes"
    assert size_key([packed, gguf]) == "checkpoint_bytes"
    assert lower_left([packed, gguf]) == ["gguf"]  # loaded, neither beats the other
    assert lower_left([packed, cell("gguf", 160, 45, 0.2)]) == ["nf4", "gguf"]


def test_a_divergence_of_zero_is_drawn_at_the_axis_end_and_said_as_it_is(tmp_path):
    cells = []
    for method, kl in (("baseline", [0.0] * 6), ("nf4", [0.0, 0.01, 0.02, 0.02, 0.03, 0.5])):
        folder = tmp_path / method
        folder.mkdir()
        pandas.DataFrame({"category": "a", "kl_nats": kl}).to_parquet(folder / "divergence.parquet")
        cells.append(Cell(method, {}, {}, {}, {"positions": 6}, {}, {"failed": []}, None, folder))
    drawn = kl_distribution(SimpleNamespace(cells=cells, baseline=cells[0]))
    assert "baseline median: 0; baseline 99 %: 0; baseline largest: 0; nf4 median: 0.0200" in drawn.alternative
    heights = [panel["layer"][0]["encoding"]["y"]["scale"]["domain"][1] for panel in drawn.chart.to_dict()["vconcat"]]
    assert heights == pytest.approx([125, 1.25 * 100 / 3])  # the baseline's single bar does not flatten the others
