"""Tables of speed: prefill and decode, and how near decoding comes to the hardware's limits."""

from collections.abc import Callable
from functools import partial
from typing import Literal

from quantharm.common.records.generation import BatchRecord, BenchmarkRecord
from quantharm.common.records.parts import Repeated
from quantharm.reporting.format import MISSING, Bounds, number, one_decimal, seconds, share, share_to_a_tenth, size
from quantharm.reporting.judgement import decode_of, device_of, prefill_of, spreads_of
from quantharm.reporting.results import Cell, Results
from quantharm.reporting.tables.columns import METHOD, figure, verdict
from quantharm.reporting.tables.table import Column, Field, Table, figure_field, table_of, text_field
from quantharm.reporting.verdicts import Verdict

Timed = Literal["prefill_seconds", "decode_tokens_per_second"]  # of the benchmark
OfRoofline = Literal[
    "bytes_per_token", "copy_bytes_per_second", "eager_share_of_copy_bandwidth", "captured_share_of_copy_bandwidth"
]


def benchmark_table(results: Results) -> Table:
    """Prefill and decode by a fixed prompt; the captured decode where the stage measured one."""
    captured = device_of(results) == "cuda" or any(cell.decoding == "captured" for cell in results.cells)

    def timed(key: Timed, label: str, show) -> Column:
        def timing(cell: Cell) -> tuple[float, Bounds]:
            repeated = cell.generation["benchmark"][key]
            return repeated["median"], repeated["ci95"]

        return figure(f"{key}_median", label, show, timing)

    def against(key: str, label: str, verdict_of: Callable[[Cell, Results], Verdict]) -> Column:
        return verdict(key, label, lambda cell: verdict_of(cell, results), True, "reference")

    columns = [
        METHOD,
        figure("model_load_seconds", "Loading", seconds, lambda cell: cell.generation["model_load_seconds"]),
        timed("prefill_seconds", "Prefill [95\u00a0%]", seconds),
        against("prefill_verdict", "Prefill time against the baseline", prefill_of),
        timed("decode_tokens_per_second", f"Decode{', eager' if captured else ''}, tokens/s [95\u00a0%]", one_decimal),
        against("decode_verdict", "Decode rate against the baseline", decode_of),
    ]
    if captured:
        label = "Decode, captured, tokens/s [95\u00a0%]"
        columns.append(Column("captured_decode_tokens_per_second_median", label, field=captured_field))
    speed = results.baseline.generation["benchmark"]
    how = " No captured (CUDA graph) decode was measured in this run."
    if captured:
        how = (
            " Eager decoding is what a Python loop gives; captured is one step as a CUDA graph, replayed: the kernels' "
            "own time. The verdict on decoding compares what a user can have: captured where it can be, else eager."
        )
    differ = spreads_of(results)[device_of(results)]
    eagerly = speed.get("eager_new_tokens", speed["new_tokens"])
    fewer = "" if eagerly == speed["new_tokens"] else f" ({eagerly} eagerly where decoding is captured)"
    repetitions = min(c.generation["benchmark"]["repetitions"] for c in results.cells)
    note = (
        f"A fixed prompt of {speed['prompt_tokens']} tokens, exactly {speed['new_tokens']} new ones{fewer}, batch 1, "
        f"at least {repetitions} repetitions after warm-up; medians.{how} Processes of one model differ by {differ:g} "
        "% (standard deviation, from the config): intervals of changes include that, intervals of medians do not."
    )
    return table_of("benchmark", columns, results.cells, note)


def captured_field(cell: Cell) -> Field:
    """The captured decode's rate, or why there is none (`reason`)."""
    captured = cell.generation["benchmark"].get("captured") or {}
    return rate_field(captured.get("decode_tokens_per_second")) or text_field(str(captured.get("reason", MISSING)))


def rate_field(rate: Repeated | None) -> Field | None:
    return figure_field(rate["median"], one_decimal, rate["ci95"]) if rate else None


def batches_table(results: Results) -> Table:
    """Tokens a second of all sequences together, and peak memory, by batch size."""
    sizes = sorted({batch["batch_size"] for cell in results.cells for batch in batches_of(cell).values()})
    columns = [METHOD, Column("decoding", "Decoding", "left", decoding_field)]
    columns += [
        Column(f"decode_tokens_per_second/batch {n}", f"Batch {n}, tokens/s", field=partial(batch_rate, n))
        for n in sizes
    ]
    columns += [
        figure(f"peak_memory_bytes/batch {n}", f"Peak memory, batch {n}", size, partial(batch_memory, n)) for n in sizes
    ]
    note = (
        "Sequences of one length decoded at once; the rate counts the tokens of all of them, medians of at least six "
        "repetitions, with 95\u00a0% intervals. Weights are read once per step for "
        "the whole batch, so the gain of smaller ones shrinks as the batch grows."
    )
    return table_of("batches", columns, results.cells, note)


def batches_of(cell: Cell) -> dict[int, BatchRecord]:
    return {batch["batch_size"]: batch for batch in cell.generation["benchmark"]["batches"]}


def decoding_field(cell: Cell) -> Field:
    """The way in which batches were decoded, and why not captured."""
    kinds = dict.fromkeys(b["decoding"] for b in batches_of(cell).values() if b["decoding"])
    reasons = dict.fromkeys(b["decoding_reason"] for b in batches_of(cell).values() if b["decoding_reason"])
    return text_field(" and ".join(kinds) or MISSING, aside="; ".join(reasons))


def batch_rate(batch_size: int, cell: Cell) -> Field:
    """The rate with its interval; the reason where there is none."""
    batch = batches_of(cell).get(batch_size)
    return rate_field(batch and batch["decode_tokens_per_second"]) or text_field(
        MISSING, aside=(batch and batch["reason"]) or ""
    )


def batch_memory(batch_size: int, cell: Cell) -> int | None:
    batch = batches_of(cell).get(batch_size)
    return batch and batch["peak_memory_bytes"]


def limits_table(results: Results) -> Table:
    """Bytes that decoding moves, those that memory could, the GPU's waiting for the host, and energy where measured."""

    def measured(key: str, label: str, show, of: Callable[[BenchmarkRecord], float | None]) -> Column:
        return figure(key, label, show, lambda cell: of(cell.generation["benchmark"]))

    def roofline(key: OfRoofline, label: str, show) -> Column:
        def value(speed: BenchmarkRecord) -> float | None:
            moved = speed.get("roofline")
            return moved.get(key) if moved else None

        return measured(key, label, show, value)

    columns = [
        METHOD,
        roofline("bytes_per_token", "Bytes moved per token", size),
        roofline("copy_bytes_per_second", "Copy bandwidth", lambda v: f"{size(v)}/s"),
        roofline("eager_share_of_copy_bandwidth", "Share of it, eager", share_to_a_tenth),
        roofline("captured_share_of_copy_bandwidth", "Share of it, captured", share_to_a_tenth),
        measured("host_wait_share", "GPU waits for the host, eager", share, lambda speed: speed.get("host_wait_share")),
        measured("joules_per_new_token", "J per token, eager", number, lambda speed: speed.get("joules_per_new_token")),
        measured(
            "captured_joules_per_new_token",
            "J per token, captured",
            number,
            lambda speed: speed.get("captured", {}).get("joules_per_new_token"),
        ),
    ]
    reason = results.baseline.generation["benchmark"].get("energy_reason")
    note = (
        "Moved: all weights that a token reads, and the KV cache so far. Copy bandwidth: bytes read and written by a "
        "copy within the device's memory; no decoding at batch 1 can be much faster than that."
        + (f" No energy: {reason}." if reason else "")
    )
    return table_of("decode-limits", columns, results.cells, note)
