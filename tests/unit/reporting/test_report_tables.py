"""Tables by hand: how figures are written, and what a table is in Markdown, CSV and Parquet."""

from types import SimpleNamespace

import pandas
import pytest

from quantharm.reporting.charts.base import log_ticks
from quantharm.reporting.format import count, interval, listing, number, percent, share, signed, size
from quantharm.reporting.tables.record import configuration_table, environment_table
from quantharm.reporting.tables.table import (
    Column,
    Field,
    Table,
    figure_field,
    frame,
    markdown_table,
    name_field,
    text_field,
    transposed,
    write_table,
)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (None, "–"),
        (0.00118, "0.00118"),
        (3.71e-7, "3.71×10⁻⁷"),
        (-0.0525, "−0.0525"),
        (12.345, "12.3"),
        (123456.0, "123,456"),
        (99.96, "100.0"),
    ],
)
def test_numbers_have_three_digits(value, shown):
    assert number(value) == shown


def test_changes_have_signs_and_small_ones_keep_theirs():
    assert percent(2.684).replace("\u00a0", " ") == "+2.68 %"
    assert percent(-48.2, 1).replace("\u00a0", " ") == "−48.2 %"
    assert signed(-0.0025) == "−0.003"
    assert signed(0.0) == "0.00"
    assert signed(None) == "–"


def test_units_and_words():
    assert size(13.49e9).replace("\u00a0", " ") == "13.49 GB"
    assert size(14_770_944).replace("\u00a0", " ") == "14.77 MB"
    assert share(0.984, 1).replace("\u00a0", " ") == "98.4 %"
    assert share(-0.208, 1).replace("\u00a0", " ") == "−20.8 %"
    assert interval([0.001, 0.002]) == "[0.00100, 0.00200]"
    assert interval(None) == ""
    assert (count(1, "prompt"), count(24, "prompt")) == ("1 prompt", "24 prompts")
    assert (listing([]), listing(["a"]), listing(["a", "b", "c"])) == ("none", "a", "a, b and c")


TABLE = Table(
    "by-hand",
    "By hand",
    [Column("method", "Method", "left"), Column("kl_nats", "KL, nats [95 %]"), Column("note", "Note", "left")],
    [
        [name_field("a|b"), figure_field(0.5, number, [0.4, 0.6]), Field("=1+1", "=1+1")],
        [name_field("c", ["kernel"]), figure_field(None), Field("–", None)],
    ],
)


def test_markdown_by_hand():
    assert markdown_table(TABLE) == (
        "| Method | KL, nats \\[95 %\\] | Note |\n"
        "| :-- | --: | :-- |\n"
        "| **a\\|b** | 0.500 \\[0.400, 0.600\\] | =1+1 |\n"
        "| **c † failed kernel** | – | – |"
    )


def test_markdown_parts_a_verdict_from_its_reason_by_a_colon():
    row = [text_field("breach", "fail", "too large"), text_field("low", "low", "[1, 2]"), text_field("x", "", "aside")]
    row.append(text_field("21/21", "pass", "0 right"))
    table = Table("t", "T", [Column(key, key) for key in "abcd"], [row])
    assert "| breach: too large | low \\[1, 2\\] | x aside | 21/21 0 right |" in markdown_table(table)


def test_values_and_intervals_are_columns():
    data = frame(TABLE)
    assert list(data.columns) == ["method", "kl_nats", "kl_nats_ci95_low", "kl_nats_ci95_high", "note"]
    assert data["kl_nats"].tolist()[0] == 0.5
    assert data["kl_nats_ci95_high"].tolist()[0] == 0.6
    assert data["kl_nats"].isna().tolist() == [False, True]


def test_files_hold_the_same_and_run_no_formula(tmp_path):
    write_table(tmp_path, TABLE)
    assert pandas.read_csv(tmp_path / "by-hand.csv")["note"][0] == "'=1+1"
    assert pandas.read_parquet(tmp_path / "by-hand.parquet")["note"][0] == "=1+1"


def test_rows_as_columns():
    turned = transposed(TABLE, Column("figure", "Figure"))
    assert [c.label for c in turned.columns] == ["Figure", "a|b", "c †"]
    assert [row[0].value for row in turned.rows] == ["kl_nats", "note"]
    assert turned.rows[0][1].value == 0.5


def test_ticks_of_a_logarithmic_axis():
    assert log_ticks(1e-4, 0.5) == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1])
    assert log_ticks(0.02, 0.3) == pytest.approx([0.02, 0.05, 0.1, 0.2])


def test_how_the_chat_template_was_used_and_what_one_method_needs_are_in_the_technical_record():
    said = {"chat_template": "auto", "template_date": "2025-01-01"}
    known = said | {"thinking_switch": True, "thinking": False, "system_prompt": "Be brief."}
    ran = {"host_cpu": "x", "threads": 2, "versions": {}, "git_commit": "a"}
    text = {"dataset": "d", "dataset_sha256": "d"}
    suite = {"prompts": 2, "suite": "s", "suite_sha256": "s", "max_new_tokens": 9, "provenance": ran}
    source = dict.fromkeys(["source", "revision", "architecture", "layers", "hidden_size", "context"])
    source |= {"vocabulary": 9, "weights_sha256": "w", "tokenizer_sha256": "t", "chat_template_sha256": "c"}
    shown = []

    def facts_of(asked: dict, **elsewhere) -> dict[str, str]:
        records = {stage: {"provenance": ran} for stage in ("divergence", "checks")}
        records["checks"] = {"provenance": ran | {"finished": "now"}}
        cell = SimpleNamespace(
            generation=suite | asked,
            perplexity=text | {"provenance": ran},
            quantization={"source": source, "provenance": ran},
            **records,
        )
        of_method = {"provenance": ran | {"versions_of_method": {"alib": "7"}} | elsewhere}
        other = SimpleNamespace(**vars(cell) | {"generation": of_method})
        table = environment_table(SimpleNamespace(baseline=cell, cells=[cell, other], model="m", device="CPU: x"))
        return {row[0].text: row[1].text for row in table.rows}

    for asked in (said, known, known | {"thinking": True}, said | {"chat_template": "never"}):
        facts = facts_of(asked)
        assert facts["alib"] == "7"
        shown.append(facts["Chat template"])
    assert shown[0] == "used: auto; told that today is 2025-01-01"
    assert shown[1] == (
        f"{shown[0]}; it has a switch for thinking, which was off; set `thinking: true` to measure with it; "
        "system prompt: Be brief."
    )
    assert shown[2] == f"{shown[0]}; it has a switch for thinking, which was on; system prompt: Be brief."
    assert shown[3] == "not used: never"
    assert (facts["Host CPU"], facts["Code of the workflow"]) == ("x, 2 threads", "a")
    facts = facts_of(said, threads=3, git_commit=None)  # a cell that was made apart
    assert facts["Host CPU"] == "x, 2 threads; x, 3 threads"
    assert facts["Code of the workflow"] == "a; commit not known"
    assert facts_of(said, warm_start=True)["Host CPU"] == "x, 2 threads; x, 2 threads, warm start"
    source["chat_template_sha256"] = None
    assert facts_of(said)["Chat template"] == "not used: auto"


def test_the_configuration_shows_the_settings_that_had_an_effect():
    record = {"quantizer": "torchao", "settings": {"kind": "int8_weight_only", "group_size": 128, "noise": None}}
    record |= {"linear_classes": [], "settings_without_effect": ["group_size"]}
    cell = SimpleNamespace(
        name="a",
        marked_name="a",
        method="a",
        failed=[],
        quantization=record,
        generation={"provenance": {"compute_dtype": "float32"}},
        checks={"provenance": {"finished": "now"}},
        row={"parameters": 9, "quantize_seconds": 1.0},
        figure=lambda key: 1.0,
    )
    table = configuration_table(SimpleNamespace(cells=[cell]))
    shown = {column.key: field.text for column, field in zip(table.columns, table.rows[0], strict=True)}
    assert shown["settings"] == "kind int8_weight_only"
