"""Verdicts on speed: two processes of one model are no difference, and what a user can reach decides."""

import math

import numpy
import pytest

from quantharm.common.medians import describe, widened
from quantharm.report import default_thresholds
from quantharm.reporting.differences import change_of_medians, process_spread, prompts_spread, speed_changes
from quantharm.reporting.judgement import decode_of, prefill_of, time_of
from quantharm.reporting.results import Cell, Results
from quantharm.reporting.tables.speed import batches_table, benchmark_table, limits_table

THRESHOLDS = default_thresholds()
SPREADS = THRESHOLDS["speed_process_spread_percent"]


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
        batches = [
            {"batch_size": 1, "decoding": "eager", "decoding_reason": "not here", "reason": None}
            | {"decode_tokens_per_second": timings(rate, random), "peak_memory_bytes": 10**9},
            {"batch_size": 8, "decoding": None, "decoding_reason": None, "reason": "out of memory (GPU)"}
            | {"decode_tokens_per_second": None, "peak_memory_bytes": None},
        ]
        generation = {
            "benchmark": speed | {"batches": batches, "processor_wait_share": 0.002},
            "decoding": "captured" if graph else "eager",
            "seconds_mean": 1.0,
            "time_to_first_token_seconds_mean": 0.1,
            "model_load_seconds": 1.0,
            "provenance": {"device_type": device, "device": "x", "dtype": "bfloat16"},
        }
        cells.append(Cell(name, {}, {}, {}, {}, generation, {"failed": []}, None, None))
    records = (cell.generation["benchmark"] for cell in cells[::-1])
    cells[1].changes = speed_changes(*records, device, SPREADS)
    return Results("model", None, cells, THRESHOLDS)


def test_on_a_gpu_captured_decoding_decides():
    run = results("cuda", eager=(40.0, 27.0), captured=(120.0, 160.0))
    verdict = decode_of(run.methods[0], run)
    assert verdict.words == "faster"  # eager it is slower, since it waits for Python
    assert verdict.figure.endswith(", captured")


def test_what_a_user_can_reach_is_compared_and_eager_is_named():
    """LLM.int8 cannot be captured: a user who can have 120 tokens a second in 16 bits gets 30 with it."""
    run = results("cuda", eager=(40.0, 45.0), captured=(120.0, None))
    verdict = decode_of(run.methods[0], run)
    assert verdict.words == "slower"
    assert run.methods[0].decode_change[0] == pytest.approx(100 * (45 / 120 - 1), abs=1)
    assert verdict.figure.endswith(", eager against captured")
    assert "(standard deviation 15 % and 0.3 %)" in verdict.rule
    neither = results("cuda", eager=(40.0, 20.0))
    assert decode_of(neither.methods[0], neither).figure.endswith(", eager")
    on_cpu = results("cpu", eager=(40.0, 10.0))
    assert "eager" not in decode_of(on_cpu.methods[0], on_cpu).figure


@pytest.mark.parametrize("sides", [("cpu", "cpu"), ("cuda_captured", "cuda_captured"), ("cuda", "cuda_captured")])
def test_two_processes_of_one_model_differ_once_in_twenty_at_most(sides):
    """Rates of processes that vary as the config says, with repetitions that vary by far less within each."""
    percents = [SPREADS[side] for side in sides]
    random = numpy.random.default_rng(1)
    scales = numpy.log1p(numpy.array(percents)[:, None] / 100)
    levels = numpy.exp(scales * random.normal(size=(2, 1500)))
    within = 0.1 * scales.min()
    called, called_without = 0, 0
    for pair in levels.T:
        values = [level * numpy.exp(random.normal(0, within, 10)) for level in pair]
        for spread in (process_spread(*percents), 0.0):
            low, high = change_of_medians(*values, spread)[1]
            differs = not low <= 0 <= high
            called += differs and spread > 0
            called_without += differs and spread == 0
    assert called <= 0.06 * 1500
    assert called >= 0.02 * 1500  # and not by being endlessly wide
    assert called_without > 0.5 * 1500  # what the repetitions of one process say


def test_spreads_by_hand():
    one, other = math.log(1.15), math.log(1.003)
    assert process_spread(15) == pytest.approx(1.96 * math.sqrt(2) * one)
    assert process_spread(15, 0.3) == pytest.approx(1.96 * math.sqrt(one**2 + other**2))
    captured = {"decoding": "captured", "seconds_mean": 2.0, "time_to_first_token_seconds_mean": 0.5, "prompts": 96}
    captured["decoding_check"] = None
    assert prompts_spread(captured, "cuda", SPREADS) == pytest.approx(0.25 * 15 + 0.75 * 0.3)
    by_graphs = captured | {"decoding_check": {"prompts_read": {"captured": 72}}}  # a quarter of them eagerly
    assert prompts_spread(by_graphs, "cuda", SPREADS) == pytest.approx(0.0625 * 15 + 0.9375 * 0.3)
    assert prompts_spread(captured | {"decoding": "eager"}, "cuda", SPREADS) == 15


def test_prompts_say_how_they_were_decoded():
    run = results("cuda", eager=(40.0, 45.0), captured=(120.0, None))
    run.methods[0].changes["seconds_percent"] = (170.0, [160.0, 180.0])
    verdict = time_of(run.methods[0], run)
    assert (verdict.words, verdict.figure.rpartition(", ")[2]) == ("slower", "eager against captured")
    assert "(standard deviation 15 % and 1.8 %)" in verdict.rule  # a tenth of the baseline's time is eager prefill


def test_a_process_that_others_slowed_down_is_not_judged():
    run = results("cpu", eager=(40.0, 20.0))
    assert decode_of(run.methods[0], run).words == "slower"
    for cell in run.cells:
        cell.generation["benchmark"]["processor_wait_share"] = 0.45
        for verdict in (decode_of(run.methods[0], run), prefill_of(run.methods[0], run)):
            assert verdict.level == "unknown"
            assert verdict.words == "not judged: other programs had the processors 45 % of the time"
        cell.generation["benchmark"]["processor_wait_share"] = None  # a system that does not tell
    assert decode_of(run.methods[0], run).words == "slower"


def test_batches_are_shown_with_what_did_not_fit():
    run = results("cuda", eager=(40.0, 27.0))
    table = batches_table(run)
    assert [column.key for column in table.columns] == [
        "method",
        "decoding",
        *(f"decode_tokens_per_second/batch {n}" for n in (1, 8)),
        *(f"peak_memory_bytes/batch {n}" for n in (1, 8)),
    ]
    _, how, one, eight, peak, none = table.rows[1]
    assert (how.text, how.aside) == ("eager", "not here")
    assert one.value == pytest.approx(27.0, rel=0.01)
    assert one.bounds
    assert (eight.value, eight.aside) == ("–", "out of memory (GPU)")
    assert (peak.value, none.value) == (10**9, None)


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
