"""Tables and verdicts of speed: prefill and decode, and how near decoding comes to the hardware's limits."""

from dataclasses import replace
from typing import Any

from quantharm.reporting.format import MISSING, fixed, seconds, share, size
from quantharm.reporting.results import Cell as MethodCell
from quantharm.reporting.results import Results, captured_rate
from quantharm.reporting.tables.quality import METHOD
from quantharm.reporting.tables.table import Cell, Column, Table, figure_cell, name_cell, text_cell, verdict_cell
from quantharm.reporting.verdicts import Verdict, change_verdict, speed_verdict


def benchmark_table(results: Results, thresholds: dict[str, Any]) -> Table:
    """Prefill and decode by a fixed prompt; the captured decode where the stage measured one."""
    captured = any("captured" in cell.generation["benchmark"] for cell in results.cells)
    rows = []
    for cell in results.cells:
        speed = cell.generation["benchmark"]
        prefill, decode = speed["prefill_seconds"], speed["decode_tokens_per_second"]
        own = cell is results.baseline
        line = [
            name_cell(cell.method, cell.failed),
            figure_cell(cell.generation["model_load_seconds"], seconds),
            figure_cell(prefill["median"], seconds, prefill["ci95"]),
            text_cell("reference") if own else verdict_cell(prefill_of(cell, results, thresholds), True),
            figure_cell(decode["median"], lambda v: fixed(v, 1), decode["ci95"]),
            text_cell("reference") if own else verdict_cell(decode_of(cell, results, thresholds), True),
        ]
        rows.append(line + ([captured_cell(speed.get("captured"))] if captured else []))
    columns = [
        METHOD,
        Column("model_load_seconds", "Loading"),
        Column("prefill_seconds_median", "Prefill [95\u00a0%]"),
        Column("prefill_verdict", "Prefill time against the baseline", "left"),
        Column("decode_tokens_per_second_median", f"Decode{', eager' if captured else ''}, tokens/s [95\u00a0%]"),
        Column("decode_verdict", "Decode rate against the baseline", "left"),
        *(
            [Column("captured_decode_tokens_per_second_median", "Decode, captured, tokens/s [95\u00a0%]")]
            if captured
            else []
        ),
    ]
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
    return Table("benchmark", "Prefill and decode", columns, rows, note)


def captured_cell(captured: dict[str, Any] | None) -> Cell:
    """The captured decode's rate, or why there is none (`reason`)."""
    if not captured:
        return text_cell(MISSING)
    rate = captured.get("decode_tokens_per_second")
    if not rate:
        return text_cell(str(captured.get("reason", MISSING)))
    return figure_cell(rate["median"], lambda v: fixed(v, 1), rate["ci95"])


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
    rows = []
    for cell in results.cells:
        speed = cell.generation["benchmark"]
        limits = speed.get("roofline") or {}
        captured = speed.get("captured", {})
        rows.append(
            [
                name_cell(cell.method, cell.failed),
                figure_cell(limits.get("bytes_per_token"), size),
                figure_cell(limits.get("copy_bytes_per_second"), lambda v: f"{size(v)}/s"),
                figure_cell(limits.get("eager_share_of_copy_bandwidth"), lambda v: share(v, 1)),
                figure_cell(limits.get("captured_share_of_copy_bandwidth"), lambda v: share(v, 1)),
                figure_cell(speed.get("host_wait_share"), share),
                figure_cell(speed.get("joules_per_new_token")),
                figure_cell(captured.get("joules_per_new_token")),
            ]
        )
    columns = [
        METHOD,
        Column("bytes_per_token", "Moved for a token"),
        Column("copy_bytes_per_second", "Copy bandwidth"),
        Column("eager_share_of_copy_bandwidth", "Share of it, eager"),
        Column("captured_share_of_copy_bandwidth", "Share of it, captured"),
        Column("host_wait_share", "GPU waits for the host, eager"),
        Column("joules_per_new_token", "J a token, eager"),
        Column("captured_joules_per_new_token", "J a token, captured"),
    ]
    reason = results.baseline.generation["benchmark"].get("energy_reason")
    note = (
        "Moved: all weights that a token reads, and the KV cache so far. Copy bandwidth: bytes read and written by a "
        "copy within the device's memory; no decoding at batch 1 can be much faster than that."
        + (f" No energy: {reason}." if reason else "")
    )
    return Table("decode-limits", "Decoding against the hardware's limits", columns, rows, note)
