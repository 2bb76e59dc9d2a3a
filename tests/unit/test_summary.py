"""The table of all cells, in its file and on a terminal, and the cells that it lacks."""

import json
import sys

import pandas
import pytest

from quantharm import summary
from quantharm.common.files import write_json
from quantharm.summary import short_table, table_of

ENTRY = {
    "model": "m",
    "method": "nf4",
    "stage": "quantize",
    "reason": "the disk is full",
    "log": "x",
    "compared": False,
}


def test_cells_left_out_are_rows_with_the_reason_and_keep_the_types_of_the_others():
    rows = [{"model": "m", "method": name, "prompts": 3, "synthetic": False, "perplexity": 2.5} for name in "ab"]
    table = table_of(rows, [ENTRY, ENTRY | {"method": "b", "stage": "integrity", "compared": True}])
    assert table["method"].tolist() == ["a", "b", "nf4"]
    assert table["prompts"].tolist()[:2] == [3, 3]
    assert (table["prompts"].dtype, table["synthetic"].dtype) == ("Int64", "boolean")
    assert table.loc[2, ["prompts", "synthetic", "perplexity"]].isna().all()
    assert table["left_out"].isna().tolist() == [True, False, False]
    assert table["left_out"].tolist()[1:] == [
        "its integrity is missing: stage integrity failed: the disk is full",
        "stage quantize failed: the disk is full",
    ]


def test_a_table_of_cells_left_out_alone():
    table = table_of([], [ENTRY])
    assert table.to_dict("records") == [
        {"model": "m", "method": "nf4", "left_out": "stage quantize failed: the disk is full"}
    ]
    assert short_table(table.head(0)) == "No cell could be compared."


def test_the_table_of_a_terminal_says_how_many_bits_a_weight_takes_and_nothing_of_a_baseline():
    common = {"model": "m", "weight_bytes": 9e6, "checkpoint_bytes": 8e6, "perplexity": 2.5, "kl_nats_mean": 0.1}
    common |= {"perplexity_change_percent": 1.0, "top1_agreement": 0.9, "decode_tokens_per_second_median": 3.0}
    common |= {"checks_failed": "", "integrity_verified": True, "synthetic": False}
    rows = [
        common | {"method": "baseline", "bits_per_weight": None},
        common | {"method": "w4", "bits_per_weight": 4.25},
    ]
    lines = short_table(table_of(rows, [])).splitlines()
    assert ("bits" in lines[0], "4.25" in lines[2], "nan" in lines[1].lower()) == (True, True, False)


def test_a_table_without_cells_left_out_keeps_its_types():
    table = table_of([{"model": "m", "method": "a", "prompts": 3}], [])
    assert table["prompts"].dtype == "int64"
    assert table["left_out"].isna().all()


SHOWN = {
    "model": "m",
    "method": "a",
    "synthetic": False,
    "weight_bytes": 4_000_000,
    "checkpoint_bytes": 4_100_000,
    "bits_per_weight": None,
    "perplexity": 2.5,
    "perplexity_change_percent": 0.0,
    "kl_nats_mean": 0.0,
    "top1_agreement": 1.0,
    "decode_tokens_per_second_median": 9.0,
    "checks_failed": [],
    "integrity_verified": None,
}


@pytest.fixture
def written(tmp_path, monkeypatch, capsys):
    """written(flag, paths, left out): (the table in CSV, what the terminal shows) of one run of the stage."""

    def run(flag, paths, left_out):
        outputs = [f"--{kind}={tmp_path / kind}" for kind in ("json", "parquet", "csv")]
        given = [flag, *map(str, paths), "--left-out", json.dumps(left_out), *outputs]
        monkeypatch.setattr(sys, "argv", ["summary", *given])
        summary.main()
        return pandas.read_csv(tmp_path / "csv"), capsys.readouterr().out

    return run


def test_cells_left_out_of_some_models_and_whole_models_are_named_in_one_table(written, tmp_path):
    write_json(tmp_path / "m.json", {"cells": [SHOWN], "left_out": [ENTRY]})
    write_json(tmp_path / "earlier.json", {"cells": [SHOWN | {"model": "e", "integrity_verified": True}]})
    whole = ENTRY | {"model": "n", "method": None, "stage": "fetch"}
    table, shown = written("--summaries", [tmp_path / "m.json", tmp_path / "earlier.json"], [whole])
    assert table["model"].tolist() == ["m", "e", "m", "n"]
    assert table["left_out"].isna().tolist() == [True, True, False, False]
    compared, rest = shown.split("Left out: ", 1)
    assert len(compared.splitlines()) == 3  # the head and two cells: none without figures
    assert [line.split()[-1] for line in compared.splitlines()[1:]] == ["missing", "finding"]
    assert rest.startswith("m × nf4: stage quantize failed: the disk is full (x)\nLeft out: n: stage fetch failed")


def test_only_a_cell_whose_integrity_failed_is_read_without_it(written, tmp_path, monkeypatch):
    asked = {}
    row = dict(SHOWN)
    monkeypatch.setattr(
        summary, "summarise_cell", lambda cell, _, integrity, tasks: asked.update({cell.name: integrity}) or row
    )
    left_out = [ENTRY | {"stage": "integrity", "compared": True}, ENTRY | {"method": "int8"}]
    written("--cells", [tmp_path / name for name in ("baseline", "nf4", "awq")], left_out)
    assert asked == {"baseline": True, "nf4": False, "awq": True}
