"""Studies beside the default run in the report: shown where they were made, and a spread that takes rankings back."""

import json

import pandas
import pytest
import synthetic
from report_runs import outputs, run_report

from quantharm.common.files import read_json, write_json, write_parquet
from quantharm.common.paired import paired_figures
from quantharm.report import default_thresholds
from quantharm.reporting.names import FIGURES
from quantharm.reporting.ranking import is_closer
from quantharm.reporting.reading import read_results
from quantharm.reporting.tables.studies import calibration_caveat, calibration_table, monitor_table, noise_table

THRESHOLDS = default_thresholds()
FOUND = {
    "samples_asked": 20,
    "samples_reached": 20,
    "tokens_asked": 10240,
    "tokens_reached": 10240,
    "sample_tokens_min": 512,
    "sample_tokens_max": 512,
    "duplicate_samples": 0,
    "distinct_tokens": 3456,
    "overlaps": 0,
    "nll_mean_nats": 4.4,
    "text_nll_mean_nats": 4.0,
    "coverage_by_category": {"Creative Writing": 0.9, "Translation": 0.45},
    "template_coverage": None,
}


def study_row(text, seed: int, kl: float, corruption=None) -> dict:
    return {
        "method": "awq",
        "text": text,
        "seed": seed,
        "corruption": corruption,
        "quantized_perplexity_change_percent": 100 * kl,
        "quantized_perplexity_change_percent_ci95": [90 * kl, 110 * kl],
        "quantized_kl_nats_mean": kl,
        "quantized_kl_nats_ci95": [0.9 * kl, 1.1 * kl],
        "faults": ["60% of the samples repeat another one"] if corruption else [],
    }


def noise_row(model, sigma: float) -> dict:
    """As the sweep itself makes it, so that the report reads the keys that there are."""
    alone, quantized = (paired_figures(model / "nf4", model / "baseline", kind) for kind in ("alone", "quantized"))
    return {"method": "nf4", "sigma_half_widths": sigma, "codes_changed": sigma / 4} | alone | quantized


def history() -> pandas.DataFrame:
    """Three runs of the monitor, the last one an alarm, of a checkpoint with a name that is not to be trusted."""
    runs = {"run": [1, 2, 3], "time": "2026-01-01T00:00:00+00:00", "checkpoint": f"folder{synthetic.HOSTILE}"}
    figures = {"kl_nats": [0.001, 0.0012, 0.05], "ewma": [0.001, 0.0011, 0.011], "low": 0.0009, "high": 0.0015}
    return pandas.DataFrame(runs | figures | {"alarm": [False, False, True], "prompts": [["a", "b"]] * 3})


def test_the_table_of_the_monitor_by_hand():
    table = monitor_table(history())
    shown = [[cell.text for cell in row[:4]] for row in table.rows]
    assert [line[0] for line in shown] == ["3", "2", "1"]
    assert [line[2] for line in shown] == ["alarm", "no alarm", "no alarm"]
    assert (table.rows[0][3].text, table.rows[0][3].aside) == ("0.0500", "2 prompts")
    assert table.rows[0][5].text == "0.000900 to 0.00150"
    many = pandas.concat([history()] * 10, ignore_index=True)
    assert len(monitor_table(many).rows) == 20
    assert "The last 20 of 30 runs." in monitor_table(many).note


@pytest.fixture
def model(tmp_path):
    folder = synthetic.make_model(tmp_path, "alpha-7b", ["baseline", "nf4", "awq"])
    checks = read_json(folder / "awq/checks.json")
    write_json(folder / "awq/checks.json", checks | {"calibration": FOUND})
    return folder


def add_study(model, spread: float) -> None:
    rows = [study_row("articles", 1, 0.024), study_row("articles", 2, 0.024 + spread)]
    study = {
        "rows": [*rows, study_row(None, 0, 0.5, "repeated_token")],
        "spread_kl_nats": {"awq": {"range": spread, "mean": 0.024, "cells": 2}},
        "comparisons": [{"method": "awq", "other": "nf4", "difference_nats": -0.007, "ranked": spread < 0.007}],
        "kl_nats_mean": {"awq": 0.024, "nf4": 0.031},
    }
    (model / "calibration_study.json").write_text(json.dumps(study))


def test_a_ranking_inside_the_spread_of_calibration_is_not_claimed(model):
    before = read_results(model, THRESHOLDS)
    difference = before.kl_differences["nf4", "awq"]
    low, high = difference.ci95
    assert is_closer(before, "awq", "nf4")
    assert "is not known here" in calibration_caveat(before)
    add_study(model, 0.02)
    after = read_results(model, THRESHOLDS)
    widened = after.kl_differences["nf4", "awq"]
    assert widened.nats == difference.nats
    assert widened.ci95 == [pytest.approx(low - 0.02), pytest.approx(high + 0.02)]
    assert not is_closer(after, "awq", "nf4")
    assert "0.0200 nats for awq" in calibration_caveat(after)
    add_study(model, 1e-4)
    assert is_closer(read_results(model, THRESHOLDS), "awq", "nf4")


def test_the_calibration_table_by_hand(model):
    table = calibration_table(read_results(model, THRESHOLDS))
    assert [(row[0].text, row[1].text) for row in table.rows] == [("nf4", "uses none"), ("awq", "20")]
    shown = {column.key: cell for column, cell in zip(table.columns, table.rows[1], strict=True)}
    assert (shown["loss_ratio"].text, shown["loss_ratio"].value) == ("1.10×", pytest.approx(1.1))
    assert (shown["least_coverage"].value, shown["least_coverage"].aside) == (0.45, "Translation")
    assert shown["template_coverage"].text == "the model has none"


def test_the_table_of_the_noise_sweep_by_hand(model):
    row = noise_row(model, 0.3)
    table = noise_table([row])
    shown = {column.key: cell for column, cell in zip(table.columns, table.rows[0], strict=True)}
    assert (shown["sigma_half_widths"].value, shown["codes_changed"].text) == (0.3, "7.5\u00a0%")
    kl = read_json(model / "nf4/divergence.json")["kl_nats"]
    for kind in ("alone", "quantized"):
        assert (shown[f"{kind}_kl_nats_mean"].value, shown[f"{kind}_kl_nats_mean"].bounds) == (kl["mean"], kl["ci95"])
        assert shown[f"{kind}_perplexity_change_percent"].bounds == row[f"{kind}_perplexity_change_percent_ci95"]


def test_the_report_shows_the_studies_that_were_made(model, tmp_path):
    prompts = synthetic.make_prompts(tmp_path / "prompts.jsonl")
    add_study(model, 0.02)
    (model / "noise_sweep.json").write_text(json.dumps({"rows": [noise_row(model, 0.0), noise_row(model, 0.3)]}))
    write_parquet(model / "monitor/history.parquet", history())
    answer = run_report(f"--model={model}", f"--prompts={prompts}", *outputs(model))
    assert answer.returncode == 0, answer.stderr
    page = (model / "report.html").read_text(encoding="utf-8")
    assert '<li><a href="#studies">Studies beside this run</a></li>' in page
    assert page.count("<svg ") == len(FIGURES) + 3
    assert "noticed by the checks" in page
    text = (model / "EVALUATION_SUMMARY.md").read_text(encoding="utf-8")
    for words in (
        "Weight noise",
        "inside that range, so the two are not ranked",
        "60% of the samples repeat",
        "The last 3 of 3 runs.",
    ):
        assert words in page
        assert words in text
