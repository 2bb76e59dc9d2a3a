"""Tables of speed: prefill and decode, and how near decoding comes to the hardware's limits."""

from collections.abc import Callable, Mapping
from typing import Any

from quantharm.common.records.generation import BatchRecord
from quantharm.common.records.parts import Repeated
from quantharm.reporting.format import MISSING, number, one_decimal, seconds, share, share_to_a_tenth, size
from quantharm.reporting.judgement import decode_of, device_of, prefill_of, spreads_of
from quantharm.reporting.results import Cell, Results
from quantharm.reporting.tables.columns import METHOD, but_baseline, figure
from quantharm.reporting.tables.table import Column, Field, Table, figure_field, table_of, text_field, verdict_field


def benchmark_table(results: Results) -> Table:
    """Prefill and decode by a fixed prompt; the captured decode where the stage measured one."""
    captured = any("captured" in cell.generation["benchmark"] for cell in results.cells)

    def timed(key: str, label: str, show) -> Column:
        def timing(cell: Cell) -> Repeated:
            benchmark: Mapping[str, Any] = cell.generation["benchmark"]
            return benchmark[key]

        return figure(f"{key}_median", label, show, lambda c: timing(c)["median"], lambda c: timing(c)["ci95"])

    def verdict(key: str, label: str, verdict_of) -> Column:
        column = Column(key, label, "left", lambda cell: verdict_field(verdict_of(cell, results), True))
        return but_baseline(column, "reference")

    columns = [
        METHOD,
        figure("model_load_seconds", "Loading", seconds, lambda cell: cell.generation["model_load_seconds"]),
        timed("prefill_seconds", "Prefill [95\u00a0%]", seconds),
        verdict("prefill_verdict", "Prefill time against the baseline", prefill_of),
        timed("decode_tokens_per_second", f"Decode{', eager' if captured else ''}, tokens/s [95\u00a0%]", one_decimal),
        verdict("decode_verdict", "Decode rate against the baseline", decode_of),
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
    note = (
        f"A fixed prompt of {speed['prompt_tokens']} tokens, exactly {speed['new_tokens']} new ones, batch 1, at least "
        f"{min(c.generation['benchmark']['repetitions'] for c in results.cells)} repetitions after warm-up; medians."
        f"{how} Processes of one model differ by {differ:g} % (standard deviation, from the "
        "config): intervals of changes include that, intervals of medians do not."
    )
    return table_of("benchmark", columns, results.cells, note)


def captured_field(cell: Cell) -> Field:
    """The captured decode's rate, or why there is none (`reason`)."""
    captured = cell.generation["benchmark"].get("captured") or {}
    rate = captured.get("decode_tokens_per_second")
    return (
        figure_field(rate["median"], one_decimal, rate["ci95"])
        if rate
        else text_field(str(captured.get("reason", MISSING)))
    )


def batches_table(results: Results) -> Table:
    """Tokens a second of all sequences together, and peak memory, by batch size."""
    sizes = sorted({batch["batch_size"] for cell in results.cells for batch in batches_of(cell).values()})
    columns = [METHOD, Column("decoding", "Decoding", "left", decoding_field)]
    columns += [batch_rate(size) for size in sizes]
    columns += [
        figure(f"peak_memory_bytes/batch {n}", f"Peak memory, batch {n}", size, of_batch(n, "peak_memory_bytes"))
        for n in sizes
    ]
    note = (
        "Sequences of one length decoded at once; the rate counts the tokens of all of them, medians of at least six "
        "repetitions, with 95\u00a0% intervals. Quantized weights save reading once a step "
        "for the whole batch, so what they gain shrinks as the batch grows."
    )
    return table_of("batches", columns, results.cells, note)


def batches_of(cell: Cell) -> dict[int, BatchRecord]:
    return {batch["batch_size"]: batch for batch in cell.generation["benchmark"]["batches"]}


def of_batch(batch_size: int, key: str) -> Callable[[Cell], Any]:
    def value(cell: Cell) -> Any:
        batch: Mapping[str, Any] = batches_of(cell).get(batch_size) or {}
        return batch.get(key)

    return value


def decoding_field(cell: Cell) -> Field:
    """The way in which batches were decoded, and why not captured."""
    kinds = dict.fromkeys(b["decoding"] for b in batches_of(cell).values() if b["decoding"])
    reasons = dict.fromkeys(b["decoding_reason"] for b in batches_of(cell).values() if b["decoding_reason"])
    return text_field(" and ".join(kinds) or MISSING, aside="; ".join(reasons))


def batch_rate(batch_size: int) -> Column:
    """The rate with its interval; the reason where there is none."""

    def field_of(cell: Cell) -> Field:
        batch: Mapping[str, Any] = batches_of(cell).get(batch_size) or {}
        rate = batch.get("decode_tokens_per_second")
        if not rate:
            return text_field(MISSING, aside=batch.get("reason") or "")
        return figure_field(rate["median"], one_decimal, rate["ci95"])

    return Column(f"decode_tokens_per_second/batch {batch_size}", f"Batch {batch_size}, tokens/s", field=field_of)


def limits_table(results: Results) -> Table:
    """Bytes that decoding moves, those that memory could, the GPU's waiting for the host, and energy where measured."""

    def measured(key: str, label: str, show=number, part: str | None = None, column: str | None = None) -> Column:
        def value(cell: Cell) -> float | None:
            speed: Mapping[str, Any] = cell.generation["benchmark"]
            return ((speed.get(part) or {}) if part else speed).get(key)

        return figure(column or key, label, show, value)

    columns = [
        METHOD,
        measured("bytes_per_token", "Bytes moved per token", size, "roofline"),
        measured("copy_bytes_per_second", "Copy bandwidth", lambda v: f"{size(v)}/s", "roofline"),
        measured("eager_share_of_copy_bandwidth", "Share of it, eager", share_to_a_tenth, "roofline"),
        measured("captured_share_of_copy_bandwidth", "Share of it, captured", share_to_a_tenth, "roofline"),
        measured("host_wait_share", "GPU waits for the host, eager", share),
        measured("joules_per_new_token", "J per token, eager"),
        measured("joules_per_new_token", "J per token, captured", number, "captured", "captured_joules_per_new_token"),
    ]
    reason = results.baseline.generation["benchmark"].get("energy_reason")
    note = (
        "Moved: all weights that a token reads, and the KV cache so far. Copy bandwidth: bytes read and written by a "
        "copy within the device's memory; no decoding at batch 1 can be much faster than that."
        + (f" No energy: {reason}." if reason else "")
    )
    return table_of("decode-limits", columns, results.cells, note)
