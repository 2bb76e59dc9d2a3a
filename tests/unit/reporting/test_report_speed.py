"""Verdicts on speed: two processes of one model are no difference, and on a GPU captured decoding decides."""

import numpy
import pytest

from quantharm.common.statistics import describe, widened
from quantharm.report import default_thresholds
from quantharm.reporting.differences import change_of_medians, process_spread
from quantharm.reporting.judgement import decode_of, prefill_of, time_of
from quantharm.reporting.results import Cell, Results
from quantharm.reporting.tables.speed import benchmark_table, limits_table

THRESHOLDS = default_thresholds()


def timings(rate: float, random) -> dict:
    return describe(rate * numpy.exp(random.normal(0, 0.005, 12)))


def results(device: str, eager: tuple[float, float], captured: tuple[float | None, float | None] = (None, None)):
    """A baseline and a method with these decode rates; captured None: it could not be captured."""
    random = numpy.random.default_rng(0)
    cells = []
    for name, rate, graph in zip(("baseline", "method"), eager, captured, strict=True):
        speed = {
            "prompt_tokens": 8,
            "new_tokens": 4,
            "repetitions": 12,
            "prefill_seconds": timings(1 / rate, random),
            "decode_tokens_per_second": timings(rate, random),
            "captured": {"decode_tokens_per_second": timings(graph, random)} if graph else {"reason": "not here"},
        }
        generation = {
            "benchmark": speed,
            "model_load_seconds": 1.0,
            "provenance": {"device_type": device, "device": "x", "dtype": "bfloat16"},
        }
        cells.append(Cell(name, {}, {}, {}, {}, generation, {"failed": []}, None, None))
    spreads = THRESHOLDS["speed_process_spread_percent"]
    values = [c.generation["benchmark"] for c in cells[::-1]]
    for key, figure in (("prefill", "prefill_seconds"), ("decode", "decode_tokens_per_second")):
        both = [v[figure]["values"] for v in values]
        cells[1].changes[f"{key}_percent"] = change_of_medians(*both, process_spread(spreads[device]))
    if all(captured):
        both = [v["captured"]["decode_tokens_per_second"]["values"] for v in values]
        spread = process_spread(spreads[f"{device}_captured"])
        cells[1].changes["captured_decode_percent"] = change_of_medians(*both, spread)
    return Results("model", None, cells, THRESHOLDS)


def test_on_a_gpu_captured_decoding_decides():
    run = results("cuda", eager=(40.0, 27.0), captured=(120.0, 160.0))
    verdict = decode_of(run.methods[0], run)
    assert verdict.words == "faster"  # eager it is slower, since it waits for Python
    assert verdict.figure.endswith(", captured")


def test_what_cannot_be_captured_is_compared_eagerly_and_named_so():
    run = results("cuda", eager=(40.0, 10.0), captured=(120.0, None))
    verdict = decode_of(run.methods[0], run)
    assert verdict.words == "slower"
    assert verdict.figure.endswith(", eager")
    on_cpu = results("cpu", eager=(40.0, 10.0))
    assert not decode_of(on_cpu.methods[0], on_cpu).figure.endswith("eager")


def test_two_processes_of_one_model_differ_once_in_twenty_at_most():
    """Rates of processes that vary as the config says, with repetitions that vary by far less within each."""
    percent = THRESHOLDS["speed_process_spread_percent"]["cpu"]
    random = numpy.random.default_rng(1)
    levels = numpy.exp(numpy.log1p(percent / 100) * random.normal(size=(2, 1500)))
    called, called_without = 0, 0
    for first, second in levels.T:
        values = [level * numpy.exp(random.normal(0, 0.003, 10)) for level in (first, second)]
        for spread in (process_spread(percent), 0.0):
            low, high = change_of_medians(*values, spread)[1]
            differs = not low <= 0 <= high
            called += differs and spread > 0
            called_without += differs and spread == 0
    assert called <= 0.06 * 1500
    assert called >= 0.02 * 1500  # and not by being endlessly wide
    assert called_without > 0.5 * 1500  # what the repetitions of one process say


def test_the_rule_says_what_is_counted_and_nothing_is_called_paired():
    run = results("cpu", eager=(40.0, 41.0))
    for verdict in (decode_of(run.methods[0], run), prefill_of(run.methods[0], run)):
        assert verdict.words == "no measurable change"
        assert "two processes of one model differ by (standard deviation" in verdict.rule
        assert "paired" not in verdict.rule
    assert "Processes of one model differ by" in benchmark_table(run).note


def test_times_of_prompts_are_paired_by_prompt_and_between_processes():
    run = results("cpu", eager=(40.0, 41.0))
    cell = run.methods[0]
    spread = process_spread(THRESHOLDS["speed_process_spread_percent"]["cpu"])
    low, high = widened(1.02, [1.015, 1.025], spread)
    assert 1.02 - low == pytest.approx(numpy.hypot(0.005, 1.02 * spread)) == pytest.approx(high - 1.02)
    assert widened(1.02, None, spread) is None
    cell.changes["seconds_percent"] = (2.0, [100 * (low - 1), 100 * (high - 1)])
    verdict = time_of(cell, run)
    assert verdict.words == "no measurable change"
    assert verdict.rule.startswith("paired by prompt")


def test_limits_are_shown_where_they_were_measured():
    run = results("cuda", eager=(40.0, 27.0), captured=(120.0, 160.0))
    assert [cell.text for cell in limits_table(run).rows[0][1:]] == ["–"] * 7
    run.cells[1].generation["benchmark"] |= {
        "host_wait_share": 0.62,
        "joules_per_new_token": 9.5,
        "roofline": {
            "bytes_per_token": 4_000_000_000,
            "copy_bytes_per_second": 2e12,
            "eager_share_of_copy_bandwidth": 0.054,
            "captured_share_of_copy_bandwidth": 0.32,
        },
    }
    run.cells[1].generation["benchmark"]["captured"]["joules_per_new_token"] = 3.25
    shown = [cell.text.replace("\u00a0", " ") for cell in limits_table(run).rows[1][1:]]
    assert shown == ["4.00 GB", "2,000.00 GB/s", "5.4 %", "32.0 %", "62 %", "9.50", "3.25"]
