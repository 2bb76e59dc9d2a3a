"""Paired differences by hand: perplexity over the same windows, answers over the same prompts."""

import json
import math
import sys

import numpy
import pandas
import pytest
import scipy.stats

from quantharm import summary
from quantharm.common.errors import UserError
from quantharm.common.files import write_json, write_parquet
from quantharm.summary import (
    first_difference,
    flat,
    integrity_figures,
    paired_answers,
    paired_perplexity,
    short_table,
    table_of,
    task_figures,
    treatment_figures,
)


@pytest.fixture
def cells(tmp_path):
    """cells(stage, baseline rows, cell rows) → (cell folder, baseline folder)."""

    def write(stage: str, baseline: dict, cell: dict):
        for name, rows in (("baseline", baseline), ("nf4", cell)):
            write_parquet(tmp_path / name / f"{stage}.parquet", pandas.DataFrame(rows))
        return tmp_path / "nf4", tmp_path / "baseline"

    return write


def windows(sums, targets) -> dict:
    return {"window": range(len(sums)), "nll_sum_nats": sums, "targets": targets}


def test_change_of_perplexity_by_hand(cells):
    result = paired_perplexity(
        *cells("perplexity", windows([200.0, 330.0], [100, 100]), windows([210.0, 340.0], [100, 100]))
    )
    before, after = math.exp(530 / 200), math.exp(550 / 200)
    assert result["perplexity_change_percent"] == pytest.approx(100 * (after / before - 1), rel=1e-12)
    low, high = result["perplexity_change_percent_ci95"]
    assert low == pytest.approx(100 * math.expm1(0.1), rel=1e-9)  # every window became worse by the same 0.1 nats
    assert high == pytest.approx(low, rel=1e-9)


def test_change_of_perplexity_weighs_windows_by_their_targets(cells):
    result = paired_perplexity(*cells("perplexity", windows([0.0, 0.0], [10, 90]), windows([10.0, 0.0], [10, 90])))
    assert result["perplexity_change_percent"] == pytest.approx(100 * math.expm1(10 / 100))


def test_interval_of_the_change_is_paired(cells):
    """Windows differ by far more than the method changes them: an interval that is not paired would hold zero."""
    rng = numpy.random.default_rng(0)
    base = rng.normal(3000, 600, 40)
    worse = base + rng.normal(20, 4, 40)
    low, high = paired_perplexity(*cells("perplexity", windows(base, [1000] * 40), windows(worse, [1000] * 40)))[
        "perplexity_change_percent_ci95"
    ]
    expected = scipy.stats.ttest_rel(worse, base).confidence_interval(0.95)
    assert 1.5 < low < high < 2.5
    assert [low, high] == pytest.approx([100 * math.expm1(bound / 1000) for bound in expected])


def test_no_change_is_zero_with_an_interval_of_zero(cells):
    rows = windows([200.0, 330.0, 100.0], [100, 100, 100])
    result = paired_perplexity(*cells("perplexity", rows, rows))
    assert result == {"perplexity_change_percent": 0.0, "perplexity_change_percent_ci95": [0.0, 0.0]}


@pytest.mark.parametrize("targets", [[100, 99], [100]])
def test_other_windows_are_refused(cells, targets):
    with pytest.raises(UserError, match="scored different windows"):
        paired_perplexity(*cells("perplexity", windows([1.0, 2.0], [100, 100]), windows([1.0] * len(targets), targets)))


@pytest.mark.parametrize(
    ("mine", "reference", "expected"),
    [
        ([1, 2, 3], [1, 2, 3], None),
        ([1, 2, 3], [1, 9, 3], 1),
        ([5, 2], [1, 2], 0),
        ([1, 2], [1, 2, 3], 2),
        ([1, 2, 3], [1, 2], 2),
        ([], [1], 0),
        ([], [], None),
    ],
)
def test_first_difference(mine, reference, expected):
    assert first_difference(mine, reference) == expected


def answers(ids, tokens, correct) -> dict:
    rows = {"prompt_id": ids, "token_ids": tokens, "correct": pandas.array(correct, dtype="boolean")}
    return rows | {"stop_reason": ["length" if len(t) > 1 else "end_of_sequence" for t in tokens]}


def test_flips_and_differences_by_hand(cells):
    before = answers(list("abcdef"), [[1, 2], [3], [4, 5], [6], [7, 8], [9]], [True, True, False, False, None, True])
    # given in another order: prompts are matched by their ids
    after = answers(list("fedcba"), [[9], [7, 0], [6], [4, 5], [2, 2], [1, 2]], [False, True, True, False, False, True])
    found = paired_answers(*cells("generation", before, after))
    assert found["answers_cut_off"] == 4
    assert found["answers_looping"] == 0
    assert {key: value for key, value in found.items() if not key.startswith(("answers", "loop"))} == {
        "flips_right_to_wrong": 2,  # b and f
        "flips_wrong_to_right": 1,  # d; e is judged on one side only
        "identical_responses": 4,
        "first_difference_median": 0.5,  # b at 0, e at 1
        "first_difference_ci95": None,  # of two
    }


def test_identical_answers_have_no_first_difference(cells):
    rows = answers(["a"], [[1, 2]], [None])
    assert paired_answers(*cells("generation", rows, rows))["first_difference_median"] is None


def test_a_row_for_csv_is_flat():
    row = {
        "model": "m",
        "x_ci95": [1.0, 2.0],
        "y_ci95": None,
        "kl_by_category": {"A": 0.1},
        "kl_by_depth": [{"from_tokens": 0, "to_tokens": 16, "kl_nats_mean": 0.3}],
        "checks_failed": ["a", "b"],
    }
    assert flat(row) == {
        "model": "m",
        "x_ci95_low": 1.0,
        "x_ci95_high": 2.0,
        "y_ci95_low": None,
        "y_ci95_high": None,
        "kl/A": 0.1,
        "kl/tokens 0 to 15": 0.3,
        "checks_failed": "a, b",
    }


FILES = {"manifest": {"verified": True}, "signed_manifest": None, "behaviour": {"same_as_original": False}}


def integrity(**given) -> dict:
    record = {"verified": True, "explanation": "x", "scan": {"verdict": "packed"}, "if_dequantized": None}
    return record | FILES | given


def test_integrity_of_a_quantized_cell_and_of_a_baseline():
    seen = {"verdict": "dequantized", "method": "NF4"}
    assert integrity_figures(integrity(if_dequantized=seen)) == {
        "integrity_verified": True,
        "integrity_files_verified": True,
        "integrity_scan": "packed",
        "integrity_if_dequantized": "dequantized",
        "integrity_if_dequantized_seen_as": "NF4",
        "integrity_behaves_as_the_original": False,
        "integrity_explanation": "x",
    }
    assert integrity_figures(integrity())["integrity_if_dequantized"] is None
    # a signature says more than the hashes of when it was fetched
    forged = integrity_figures(integrity(signed_manifest={"verified": False}, verified=False))
    assert (forged["integrity_files_verified"], forged["integrity_verified"]) == (False, False)


def test_noise_and_calibration_of_a_cell():
    noise = {"sigma": 0.3, "relative_to": "half_step", "codes_changed": 0.1}
    samples = {"samples_reached": 20, "tokens_reached": 10240, "nll_mean_nats": 4.4, "text_nll_mean_nats": 4.0}
    figures = treatment_figures({"noise": noise}, {"calibration": samples})
    assert (figures["noise_sigma"], figures["noise_codes_changed"], figures["calibration_samples"]) == (0.3, 0.1, 20)
    assert figures["calibration_loss_ratio"] == pytest.approx(1.1)
    assert set(treatment_figures({}, {}).values()) == {None}


def test_integrity_where_nothing_was_there_to_scan():
    """A method that quantized nothing fails its checks; shown nevertheless, it has no format to be seen as."""
    figures = integrity_figures(integrity(if_dequantized={"verdict": "not scanned", "explanation": "no matrix"}))
    assert (figures["integrity_if_dequantized"], figures["integrity_if_dequantized_seen_as"]) == ("not scanned", None)


def test_figures_of_an_integrity_that_is_missing():
    assert set(integrity_figures(None)) == set(integrity_figures(integrity()))
    assert set(integrity_figures(None).values()) == {None}


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


def test_rates_and_memory_by_batch_are_columns_of_their_own():
    batches = [
        {"batch_size": 1, "decode_tokens_per_second": {"median": 50.0}, "peak_memory_bytes": 7},
        {"batch_size": 32, "decode_tokens_per_second": None, "peak_memory_bytes": None},
    ]
    assert summary.flat(summary.batch_figures(batches)) == {
        "decode_tokens_per_second/batch 1": 50.0,
        "decode_tokens_per_second/batch 32": None,
        "peak_memory_bytes/batch 1": 7,
        "peak_memory_bytes/batch 32": None,
    }


TASK = {"items": 320, "flips": 15, "mcnemar_p": 0.02, "accuracy": 0.6, "accuracy_ci95": [0.5, 0.7], "subtasks": ["t"]}


def test_p_values_of_tasks_are_corrected_for_methods_times_tasks(tmp_path):
    nothing = TASK | {"flips": None, "mcnemar_p": None}
    for name, figures in (("baseline", nothing), ("nf4", TASK), ("awq", TASK | {"mcnemar_p": 0.5})):
        record = {"tasks": {"t": figures, "u": figures}, "overall": figures}
        write_json(tmp_path / name / "tasks.json", record)
    figures = task_figures([tmp_path / name for name in ("baseline", "nf4", "awq")])
    assert figures["baseline"] == {"tasks": {"t": nothing, "u": nothing}, "tasks_overall": nothing}
    assert figures["nf4"]["tasks"]["t"]["mcnemar_p_holm"] == pytest.approx(4 * 0.02)
    assert figures["nf4"]["tasks_overall"]["mcnemar_p_holm"] == pytest.approx(2 * 0.02)
    row = flat(figures["nf4"])
    assert row["task/t/accuracy_ci95_low"] == 0.5
    assert row["task/overall/mcnemar_p_holm"] == pytest.approx(0.04)
    assert not [key for key in row if "subtasks" in key]
    assert flat({"tasks": None, "tasks_overall": None}) == {}
