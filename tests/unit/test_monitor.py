"""The monitor: its control chart against published and hand-made figures, and whole runs on tiny models."""

import importlib.util
import json
import shutil
import sys
from types import SimpleNamespace

import numpy
import pandas
import pytest
import torch

from quantharm import monitor
from quantharm.common import control_chart
from quantharm.common.errors import UserError
from quantharm.common.prompt_means import prompt_means
from quantharm.common.provenance import device_name, how_computed
from quantharm.common.versions import versions
from quantharm.forensics import manifest
from quantharm.forensics.run_history import charted
from quantharm.logits import make_trace
from quantharm.models.loading import load_cell
from quantharm.scoring.head_file import write_head
from quantharm.scoring.kl_divergence import score_store
from quantharm.scoring.store_filling import form_of_store, head_to_keep, write_store
from quantharm.scoring.store_metadata import store_metadata_of

# The worked example of NIST's Engineering Statistics Handbook, 6.3.2.4.
VALUES = [52.0, 47.0, 53.0, 49.3, 50.1, 47.0, 51.0, 50.1, 51.2, 50.5, 49.6, 47.6, 49.9, 51.3, 47.8, 51.2, 52.6, 52.4]
EWMA = [50.6, 49.52, 50.56, 50.18, 50.16, 49.21, 49.75, 49.85, 50.26, 50.33, 50.11, 49.36, 49.52, 50.05, 49.38, 49.92]
SETTINGS = {"per_category": 1, "baseline_runs": 200, "weight": 0.2, "width": 2.962}


# ---------------------------------------------------------------- the chart


def test_the_ewma_is_that_of_the_handbook():
    chart = control_chart.chart(VALUES, control_chart.Limits(50.0, 2.0539, 0.3, 3.0))
    assert numpy.round(chart["ewma"], 2)[: len(EWMA)].tolist() == EWMA
    long = control_chart.chart([50.0] * 100, control_chart.Limits(50.0, 2.0539, 0.3, 3.0))
    assert (long["low"][-1], long["high"][-1]) == (pytest.approx(47.4115, abs=1e-3), pytest.approx(52.5884, abs=1e-3))
    assert not chart["alarm"].any()


def test_the_first_limits_by_hand():
    chart = control_chart.chart([1.0, -1.0, 9.0], control_chart.Limits(0.0, 2.0, 0.5, 3.0))
    # L σ √(1/3 (1 - 1/4^t)): 6 × 1/2, 6 × √5 / 4, 6 × √21 / 8
    assert chart["high"].tolist() == pytest.approx([3.0, 3.3541020, 3.4369318])
    assert chart["low"].tolist() == pytest.approx([-3.0, -3.3541020, -3.4369318])
    assert chart["ewma"].tolist() == [0.5, -0.25, 4.375]
    assert chart["alarm"].tolist() == [False, False, True]


def test_a_fall_is_an_alarm_as_well():
    assert control_chart.chart([-9.0], control_chart.Limits(0.0, 1.0))["alarm"].tolist() == [True]


def test_limits_are_mean_and_standard_deviation():
    limits = control_chart.learn([1.0, 2.0, 3.0, 6.0], 0.3, 2.5)
    assert (limits.mean, limits.weight, limits.width) == (3.0, 0.3, 2.5)
    assert limits.standard_deviation == pytest.approx((14 / 3) ** 0.5)
    with pytest.raises(ValueError, match="do not vary"):
        control_chart.learn([1.0, 1.0, 1.0], 0.3, 3.0)


def test_run_lengths_count_until_the_first_alarm():
    limits = control_chart.Limits(0.0, 1.0, 1.0, 3.0)  # λ = 1: each value by itself
    assert control_chart.run_lengths([[0, 0, 4, 4], [4, 0, 0, 0], [0, 0, 0, 0]], limits).tolist() == [3, 1, 5]


def test_run_lengths_are_those_of_lucas_and_saccucci():
    values, limits = numpy.random.default_rng(0).normal(0.0, 1.0, (1500, 4000)), control_chart.Limits(0.0, 1.0)
    assert control_chart.run_lengths(values, limits).mean() == pytest.approx(500, abs=50)
    # Their 10.5 for a shift of one standard deviation is for constant limits; the first ones here are narrower.
    assert 9 < control_chart.run_lengths(values[:, :500] + 1.0, limits).mean() < 10.5


# ---------------------------------------------------------------- drawing


def means(values: dict[str, list[float]]) -> pandas.Series:
    index = [(c, f"{c}-{i}") for c, v in values.items() for i in range(len(v))]
    keys = pandas.MultiIndex.from_tuples(index, names=["category", "prompt_id"])
    return pandas.Series([x for v in values.values() for x in v], index=keys)


def test_a_draw_takes_prompts_of_every_category():
    table = means({"a": [1.0, 2.0, 3.0], "b": [4.0, 5.0], "c": [6.0]})
    generator = numpy.random.default_rng(0)
    for _ in range(20):
        chosen = monitor.draw(monitor.ids_by_category(table), 2, generator)
        assert [name[0] for name in chosen] == ["a", "a", "b", "b", "c"]
        assert len(set(chosen)) == 5
    values = monitor.draws(table, 1, 2000, generator)
    assert values.mean() == pytest.approx((2 + 4.5 + 6) / 3, abs=0.03)
    assert values.var() == pytest.approx((2 / 3 + 1 / 4) / 9, rel=0.1)


def test_the_simulation_draws_as_the_monitor_does(root):
    specification = importlib.util.spec_from_file_location("monitoring", root / "tests/benchmark/monitoring.py")
    simulation = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(simulation)
    table = means({"a": [1.0, 2.0, 7.0], "b": [4.0, 5.0, 9.0, 3.0], "c": [6.0]})
    for per_category in (1, 2):
        one_by_one = monitor.draws(table, per_category, 2000, numpy.random.default_rng(0))
        at_once = simulation.all_draws(table, per_category, (30, 1000), numpy.random.default_rng(1)).flatten()
        assert set(at_once.round(9)) == set(one_by_one.round(9))
        assert at_once.mean() == pytest.approx(one_by_one.mean(), abs=0.05)
        assert at_once.std() == pytest.approx(one_by_one.std(), rel=0.05)


# ---------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def cells(make_cell, tiny, save_checkpoint, tmp_path_factory):
    """A baseline's store, an approved cell (the baseline with some noise), and a folder with more noise."""
    folder = tmp_path_factory.mktemp("monitored")
    source = save_checkpoint(tiny("llama", torch.bfloat16), tmp_path_factory.mktemp("tiny"))
    settings = {"sigma": 0.3, "relative_to": "half_step", "target": "nf4", "seed": 0}
    baseline = make_cell(source, "unquantized")
    approved = make_cell(source, "unquantized", {"noise": settings})
    worse = make_cell(source, "unquantized", {"noise": settings | {"sigma": 1.5, "seed": 1}})
    generator = torch.Generator().manual_seed(0)
    rows = [
        SimpleNamespace(
            prompt_id=f"{category}-{i}",
            category=category,
            prompt_token_ids=torch.randint(2, 250, (6,), generator=generator).tolist(),
            token_ids=torch.randint(2, 250, (18,), generator=generator).tolist(),
        )
        for category in "abc"
        for i in range(4)
    ]
    trace = make_trace(SimpleNamespace(itertuples=lambda: rows), [])
    (folder / "baseline").mkdir()
    (folder / "approved").mkdir()
    trace.to_parquet(folder / "baseline/trace.parquet")
    metadata = store_metadata_of(baseline.record, trace, "cpu", "test")
    head, reason = head_to_keep(baseline.model, "hidden_states", "bfloat16")
    metadata |= form_of_store(baseline.model, head, reason)
    write_store(baseline.model, trace, folder / "baseline/logits.parquet", metadata)
    write_head(folder / "baseline/output_head.safetensors", head)
    record = approved.record | {"method": "approved"}
    (folder / "approved/quantization.json").write_text(json.dumps(record))
    divergence = score_store(load_cell(record, "cpu"), folder / "baseline/logits.parquet", trace)
    divergence.to_parquet(folder / "approved/divergence.parquet")
    return SimpleNamespace(folder=folder, worse=worse.checkpoint, divergence=divergence)


@pytest.fixture
def run(cells, tmp_path, monkeypatch):
    """run(checkpoint): one run of the monitor with a history of its own; returns that history."""

    def once(checkpoint=None, history=tmp_path / "monitor/history.parquet", baseline=None, signed=(), **settings):
        arguments = ["--approved", cells.folder / "approved", "--baseline", baseline or cells.folder / "baseline"]
        arguments += ["--settings", json.dumps(SETTINGS | settings), "--device", "cpu", "--history", history]
        arguments += [*signed, *(["--checkpoint", checkpoint] if checkpoint else [])]
        monkeypatch.setattr(sys, "argv", ["monitor", *map(str, arguments)])
        monitor.main()
        return pandas.read_parquet(history)

    once.history = tmp_path / "monitor/history.parquet"
    return once


def test_the_approved_checkpoint_raises_no_alarm_and_each_run_draws_anew(run, cells, capsys):
    for _ in range(3):
        history = run()
    assert history["run"].tolist() == [1, 2, 3]
    assert not history["alarm"].any()
    assert history["kl_nats"].nunique() == 3
    assert "run 3" in capsys.readouterr().out
    means = prompt_means(cells.divergence).droplevel("category")
    for row in history.itertuples():
        assert len(row.prompts) == 3
        assert row.kl_nats == pytest.approx(means[list(row.prompts)].mean(), rel=1e-6)
    assert (run.history.parent / "chart.svg").read_text().startswith("<svg")


def test_another_checkpoint_raises_an_alarm_in_one_sentence_and_is_in_the_history(run, cells):
    run()
    with pytest.raises(UserError, match="above the limits") as caught:
        run(cells.worse)
    assert str(cells.worse) in str(caught.value)
    history = pandas.read_parquet(run.history)
    assert history["alarm"].iloc[-1]
    assert history["weights_sha256"].nunique() == 2
    assert not list(run.history.parent.glob(".*"))


def test_a_history_of_another_approved_checkpoint_is_refused(run):
    history = run()
    history.assign(approved_sha256="other").to_parquet(run.history)
    with pytest.raises(UserError, match="another approved checkpoint"):
        run()
    pandas.DataFrame({"x": [1]}).to_parquet(run.history)
    with pytest.raises(UserError, match="not a monitor's history"):
        run()


def test_draws_of_another_size_or_store_do_not_join_one_chart(run):
    history = run()
    with pytest.raises(UserError, match=r"kept with another `monitor\.per_category:`; move it away"):
        run(per_category=2)
    history.assign(trace_sha256="other").to_parquet(run.history)
    with pytest.raises(UserError, match="another log-prob store"):
        run()
    history.to_parquet(run.history)
    assert len(run()) == 2


@pytest.mark.parametrize(("filled", "fast"), [("float32", True), ("bfloat16", False)])
def test_the_deployed_checkpoint_computes_as_the_store_was_filled(run, monkeypatch, filled, fast):
    """Whatever this processor multiplies fast: else the chart would show the processor."""

    def seen(model, *_):
        raise UserError(str(model.get_input_embeddings().weight.dtype))

    told = {"compute_dtype": filled, "dtype": "bfloat16", "device": device_name("cpu"), "versions": versions()}
    monkeypatch.setattr("quantharm.scoring.stored_logits.require_same", lambda *_: told)
    monkeypatch.setattr("quantharm.models.compute.multiplies_fast", lambda dtype: fast)
    monkeypatch.setattr(monitor, "score", seen)
    with pytest.raises(UserError, match=f"^torch.{filled}$"):
        run()


def test_draws_that_cannot_vary_are_refused(run):
    with pytest.raises(UserError, match="no control limits can be learned"):
        run(per_category=4)


def test_a_folder_that_is_no_checkpoint_leaves_no_history(run, tmp_path):
    with pytest.raises(UserError, match=r"config\.json"):
        run(tmp_path)
    assert not run.history.exists()


def test_only_the_signed_store_is_scored_against(run, cells, tmp_path):
    store, private, public, signature = (tmp_path / n for n in ("store", "k.pem", "k.pub", "store.sig"))
    shutil.copytree(cells.folder / "baseline", store)
    manifest.make_keys(private, public)
    manifest.sign(store, private, signature, only=["logits.parquet", "output_head.safetensors", "trace.parquet"])
    signed = ["--signature", signature, "--public-key", public]
    (store / "checks.json").write_text("{}")  # is no part of the store
    assert len(run(baseline=store, signed=signed)) == 1
    data = bytearray((store / "logits.parquet").read_bytes())
    data[len(data) // 2] ^= 1
    (store / "logits.parquet").write_bytes(data)
    with pytest.raises(UserError, match=r"is not the signed one: wrong: logits\.parquet"):
        run(baseline=store, signed=signed)
    assert len(pandas.read_parquet(run.history)) == 1


def test_other_hardware_widens_the_limits_for_as_long_as_the_mean_remembers_it():
    limits = control_chart.Limits(1.0, 0.1, 0.5, 3.0)
    history = pandas.DataFrame({"kl_nats": [1.0, 1.6, 1.3], "other_hardware_kl_nats": [0.0, 0.2, 0.0]})
    plain = control_chart.chart(history["kl_nats"], limits)
    chart = charted(history, limits)
    assert (chart["high"] - plain["high"]).tolist() == pytest.approx([0.0, 0.2, 0.2])
    assert (plain["low"] - chart["low"]).tolist() == pytest.approx([0.0, 0.2, 0.2])
    assert plain["alarm"].tolist() == [False, True, True]
    assert not chart["alarm"].any()


def test_what_other_hardware_may_change_is_what_the_store_says():
    store = {"device": device_name("cpu"), "versions": versions(), "dtype": "bfloat16"} | how_computed(
        "cpu", "bfloat16"
    )
    store |= {"hardware_floor": {"rounding_kl_nats": 2e-4, "eight_bit_kl_nats": 1e-3}}
    assert monitor.other_hardware_kl(store, "cpu") == 0.0
    assert monitor.other_hardware_kl(store | {"device": "CPU: another"}, "cpu") == pytest.approx(8e-4)
    assert monitor.other_hardware_kl(store | {"versions": {}}, "cpu") == pytest.approx(8e-4)
