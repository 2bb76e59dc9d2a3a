"""Tables and verdicts of speed: prefill and decode, and how near decoding comes to the hardware's limits."""

from dataclasses import replace
from functools import partial
from typing import Any

from quantharm.reporting.format import MISSING, number, seconds, share, size
from quantharm.reporting.results import Cell as MethodCell
from quantharm.reporting.results import Results, captured_rate
from quantharm.reporting.tables.columns import METHOD, but_baseline, figure, one_decimal
from quantharm.reporting.tables.table import Cell, Column, Table, figure_cell, table_of, text_cell, verdict_cell
from quantharm.reporting.verdicts import Verdict, change_verdict, speed_verdict


def benchmark_table(results: Results, thresholds: dict[str, Any]) -> Table:
    """Prefill and decode by a fixed prompt; the captured decode where the stage measured one."""
    captured = any("captured" in cell.generation["benchmark"] for cell in results.cells)

    def timed(key: str, label: str, stage_key: str, show) -> Column:
        def cell_of(cell: MethodCell) -> Cell:
            timings = cell.generation["benchmark"][stage_key]
            return figure_cell(timings["median"], show, timings["ci95"])

        return Column(key, label, cell=cell_of)

    def verdict(key: str, label: str, verdict_of) -> Column:
        column = Column(key, label, "left", lambda cell: verdict_cell(verdict_of(cell, results, thresholds), True))
        return but_baseline(column, "reference")

    eager = f"Decode{', eager' if captured else ''}, tokens/s [95\u00a0%]"
    columns = [
        METHOD,
        figure("model_load_seconds", "Loading", lambda cell: cell.generation["model_load_seconds"], seconds),
        timed("prefill_seconds_median", "Prefill [95\u00a0%]", "prefill_seconds", seconds),
        verdict("prefill_verdict", "Prefill time against the baseline", prefill_of),
        timed("decode_tokens_per_second_median", eager, "decode_tokens_per_second", one_decimal),
        verdict("decode_verdict", "Decode rate against the baseline", decode_of),
    ]
    if captured:
        label = "Decode, captured, tokens/s [95\u00a0%]"
        columns.append(
            Column(
                "captured_decode_tokens_per_second_median",
                label,
                cell=lambda cell: captured_cell(cell.generation["benchmark"].get("captured")),
            )
        )
    speed = results.baseline.generation["benchmark"]
    note = (
        f"A fixed prompt of {speed['prompt_tokens']} tokens, exactly {speed['new_tokens']} new ones, batch 1, at least "
        f"{min(c.generation['benchmark']['repetitions'] for c in results.cells)} repetitions after warm-up; medians."
        + (
            " Eager decoding is what a Python loop gives; captured is one step as a CUDA graph, replayed: the kernels' "
            "own time. The verdict on decoding is from captured decoding where both cells have it, else from eager."
            if captured
            else " No captured (CUDA graph) decode was measured in this run."
        )
        + f" {spread_note(results)}"
    )
    return table_of("benchmark", "Prefill and decode", columns, results.cells, note)


def captured_cell(captured: dict[str, Any] | None) -> Cell:
    """The captured decode's rate, or why there is none (`reason`)."""
    if not captured:
        return text_cell(MISSING)
    rate = captured.get("decode_tokens_per_second")
    if not rate:
        return text_cell(str(captured.get("reason", MISSING)))
    return figure_cell(rate["median"], one_decimal, rate["ci95"])


def spread_of(results: Results, decoding: str = "eager") -> float:
    """Standard deviation of speed between processes of one model, in percent, by the config."""
    device = results.baseline.generation["provenance"]["device_type"]
    return results.thresholds["speed_process_spread_percent"][
        f"{device}_captured" if decoding == "captured" else device
    ]


def spread_note(results: Results) -> str:
    return (
        f"Processes of one model differ by {spread_of(results):g} % (standard deviation, by the config), which the "
        "intervals of the changes count and those of one run's medians do not."
    )


def rule_of(spread: float) -> str:
    return (
        "the 95 % interval of the ratio excludes zero change; it counts what two processes of one model differ by "
        f"(standard deviation {spread:g} %)"
    )


def kind_of(cell: MethodCell, results: Results) -> str:
    """`captured` or `eager` on a GPU; nothing on a CPU, where decoding is timed in one way."""
    return cell.decoding if results.baseline.generation["provenance"]["device_type"] == "cuda" else ""


def prefill_of(cell: MethodCell, results: Results, thresholds: dict[str, Any]) -> Verdict:
    """Whether prefill takes measurably more or less time than the baseline's."""
    change = change_verdict(*cell.changes["prefill_percent"], "slower", "faster", rule=rule_of(spread_of(results)))
    timings = [c.generation["benchmark"]["prefill_seconds"] for c in (cell, results.baseline)]
    return speed_verdict(change, timings, thresholds["unsteady_percent"])


def decode_of(cell: MethodCell, results: Results, thresholds: dict[str, Any]) -> Verdict:
    """Whether decoding is measurably faster or slower, captured where both cells have that."""
    kind = kind_of(cell, results)
    rule = rule_of(spread_of(results, cell.decoding))
    change = change_verdict(*cell.decode_change, "faster", "slower", rule=rule)
    timings = [
        captured_rate(c) if cell.decoding == "captured" else c.generation["benchmark"]["decode_tokens_per_second"]
        for c in (cell, results.baseline)
    ]
    verdict = speed_verdict(change, timings, thresholds["unsteady_percent"])
    return replace(verdict, figure=f"{verdict.figure}, {kind}") if kind else verdict


def time_of(cell: MethodCell, results: Results, thresholds: dict[str, Any]) -> Verdict:
    """Whether the time of the prompts changed measurably; as steady as the decode benchmark of the same process."""
    timings = [c.generation["benchmark"]["decode_tokens_per_second"] for c in (cell, results.baseline)]
    rule = f"paired by prompt: {rule_of(spread_of(results))}"
    change = change_verdict(*cell.changes["seconds_percent"], "slower", "faster", rule=rule)
    return speed_verdict(change, timings, thresholds["unsteady_percent"])


def limits_table(results: Results) -> Table:
    """What decoding moves against what the memory can, the GPU's waiting for the host, and energy, where measured."""

    def measured(key: str, label: str, show=number, part: str | None = None, column: str | None = None) -> Column:
        def value(cell: MethodCell) -> float | None:
            speed = cell.generation["benchmark"]
            return ((speed.get(part) or {}) if part else speed).get(key)

        return figure(column or key, label, value, show)

    to_share = partial(share, decimals=1)
    columns = [
        METHOD,
        measured("bytes_per_token", "Moved for a token", size, "roofline"),
        measured("copy_bytes_per_second", "Copy bandwidth", lambda v: f"{size(v)}/s", "roofline"),
        measured("eager_share_of_copy_bandwidth", "Share of it, eager", to_share, "roofline"),
        measured("captured_share_of_copy_bandwidth", "Share of it, captured", to_share, "roofline"),
        measured("host_wait_share", "GPU waits for the host, eager", share),
        measured("joules_per_new_token", "J a token, eager"),
        measured(
            "joules_per_new_token",
            "J a token, captured",
            part="captured",
            column="captured_joules_per_new_token",
        ),
    ]
    reason = results.baseline.generation["benchmark"].get("energy_reason")
    note = (
        "Moved: all weights that a token reads, and the KV cache so far. Copy bandwidth: bytes read and written by a "
        "copy within the device's memory; no decoding at batch 1 can be much faster than that."
        + (f" No energy: {reason}." if reason else "")
    )
    return table_of("decode-limits", "Decoding against the hardware's limits", columns, results.cells, note)
