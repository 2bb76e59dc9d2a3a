"""Is a cell worse than in an earlier run, by the interval of the difference?

Where the cell's own Parquet files lie beside the earlier summary and are of the same trace and windows, differences are
paired, prompt by prompt and window by window; else the two intervals are put together as those of independent figures
(MOVER: Donner and Zou 2012, Statistical Methods in Medical Research 21:347), which is wider than need be. What was
measured or computed in another way is not compared.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy

from quantharm.common.constants import BASELINE
from quantharm.common.files import read_parquet
from quantharm.common.prompt_means import by_category, read_prompt_means
from quantharm.common.ratios import weighted_mean_interval
from quantharm.common.records.summary import SummaryRow
from quantharm.common.statistics import mean_of_means, stratified_mean
from quantharm.config.engines import NO_WEIGHTS
from quantharm.config.entries import Budget
from quantharm.gating.earlier import Earlier, differences
from quantharm.gating.figures import NO_TASKS, SYNTHETIC, prompts_of
from quantharm.gating.limits import WORSE_KINDS, Limit
from quantharm.gating.verdicts import Figure
from quantharm.reporting.differences import process_spread
from quantharm.reporting.format import Bounds, listing
from quantharm.reporting.results import Cell, Results


def worse_limits(budget: Budget) -> list[Limit]:
    """The limits on what changed since an earlier run."""
    worse: Mapping[str, Any] = budget["worse"]
    return [Limit(f"worse.{key}", None, float(bound)) for key, bound in worse.items() if bound is not None]


def figure_against(limit: Limit, cell: Cell, results: Results, earlier: Earlier | None) -> Figure:
    """The worsening of the cell; one without a value says why the runs cannot be compared."""
    key = limit.key.removeprefix("worse.")
    if earlier is None or cell.method not in earlier.rows or BASELINE not in earlier.rows:
        return Figure(None, missing="the earlier run has no such cell")
    then = earlier.rows[cell.method]
    if cell.failed or then["checks_failed"]:
        return Figure(None, missing="its checks failed, now or then: its figures are not to be believed")
    if cell.served and key in ("weight_bytes", "decode_rate_ratio"):
        return Figure(None, missing=NO_WEIGHTS if key == "weight_bytes" else "it runs on hardware that is not seen")
    if key == "kl_nats" and (cell.bounded or then.get("kl_is_lower_bound")):
        return Figure(None, missing="not compared: lower bounds say nothing about their difference")
    if key != "weight_bytes":
        if cell.synthetic and key != "decode_rate_ratio":
            return Figure(None, missing=SYNTHETIC)
        differing = differences(cell.row, then, key)
        if differing:
            return Figure(None, missing=f"not compared: the earlier run has another {listing(differing)}")
    return FIGURES[key](cell, results, earlier)


def independent_difference(now: float, ci95: Bounds, then: float, then_ci95: Bounds) -> tuple[float, Bounds]:
    """(now - then, its 95 % interval) from the intervals of two figures of different samples."""
    if ci95 is None or then_ci95 is None:
        return now - then, None
    down = math.hypot(now - ci95[0], then_ci95[1] - then)
    up = math.hypot(ci95[1] - now, then - then_ci95[0])
    return now - then, [now - then - down, now - then + up]


def transformed(pair: tuple[float, Bounds], function: Callable[[float], float]) -> tuple[float, Bounds]:
    """A value and its interval through a rising function."""
    value, bounds = pair
    return float(function(value)), bounds and [float(function(bound)) for bound in bounds]


def more_kl(cell: Cell, results: Results, earlier: Earlier) -> Figure:
    """Mean KL now - then, in nats."""
    now, then, prompts = cell.row, earlier.rows[cell.method], prompts_of(cell)
    folder = earlier.folder / cell.method
    if now["trace_sha256"] == then["trace_sha256"] and (folder / "divergence.parquet").is_file():
        before = read_prompt_means(folder)
        if math.isclose(mean_of_means(*by_category(before)), then["kl_nats_mean"], rel_tol=1e-6):
            paired = stratified_mean(by_category((read_prompt_means(cell.folder) - before).dropna()))
            return Figure(paired["mean"], paired["ci95"], prompts, "prompts", floor=results.least_kl)
    value, bounds = independent_difference(
        now["kl_nats_mean"], now["kl_nats_ci95"], then["kl_nats_mean"], then["kl_nats_ci95"]
    )
    return Figure(value, bounds, prompts, "prompts", floor=results.least_kl)


def log_ratios(cell: Path) -> tuple[numpy.ndarray, numpy.ndarray] | None:
    """(Σ ln p of the baseline - Σ ln p of the cell, targets) of each window; None where there are no such files."""
    paths = [folder / "perplexity.parquet" for folder in (cell, cell.parent / BASELINE)]
    if not all(path.is_file() for path in paths):
        return None
    mine, reference = map(read_parquet, paths)
    if mine["targets"].tolist() != reference["targets"].tolist():
        return None
    return (mine["nll_sum_nats"] - reference["nll_sum_nats"]).to_numpy(), mine["targets"].to_numpy()


def more_perplexity(cell: Cell, results: Results, earlier: Earlier) -> Figure:
    """100 · (PPL ratio to the baseline now ÷ the same then - 1)."""
    now, then = cell.row, earlier.rows[cell.method]
    windows = cell.perplexity["windows"]

    def percent(log_ratio):
        return 100 * numpy.expm1(log_ratio)

    def log_ratio(percents):
        return numpy.log1p(percents / 100)

    mine, before = log_ratios(cell.folder), log_ratios(earlier.folder / cell.method)
    if mine and before and (mine[1].tolist() == before[1].tolist()):
        then_percent = percent(before[0].sum() / before[1].sum())
        if math.isclose(then_percent, then["perplexity_change_percent"], rel_tol=1e-6, abs_tol=1e-9):
            change = mine[0] - before[0]
            return Figure(
                float(percent(change.sum() / mine[1].sum())),
                weighted_mean_interval(change, mine[1], percent),
                windows,
                "windows",
            )
    sides = [
        transformed((row["perplexity_change_percent"], row["perplexity_change_percent_ci95"]), log_ratio)
        for row in (now, then)
    ]
    value, bounds = transformed(independent_difference(*sides[0], *sides[1]), percent)
    return Figure(value, bounds, windows, "windows")


def rate_ratio(row: Mapping[str, Any], reference: Mapping[str, Any], name: str, spread: float) -> tuple[float, Bounds]:
    """ln(decode rate ÷ the baseline's) with its interval. spread: half-width in ln that two processes differ by."""
    sides = [transformed((r[f"{name}_median"], r.get(f"{name}_ci95")), math.log) for r in (row, reference)]
    value, bounds = independent_difference(*sides[0], *sides[1])
    if bounds is None:
        return value, None
    return value, [value - math.hypot(value - bounds[0], spread), value + math.hypot(bounds[1] - value, spread)]


def less_speed(cell: Cell, results: Results, earlier: Earlier) -> Figure:
    """1 - (decode rate ratio to the baseline now ÷ the same then); captured where all four were."""
    now, then = (cell.row, results.baseline.row), (earlier.rows[cell.method], earlier.rows[BASELINE])
    name, suffix = "captured_decode_tokens_per_second", "_captured"
    if any(row.get(f"{name}_median") is None for row in now + then):
        name, suffix = "decode_tokens_per_second", ""
    spreads = results.thresholds["speed_process_spread_percent"]
    spread = process_spread(spreads[cell.generation["provenance"]["device_type"] + suffix])
    before, after = (rate_ratio(*rows, name, spread) for rows in (then, now))
    value, bounds = independent_difference(*before, *after)  # then - now: how much slower
    repetitions = len(cell.generation["benchmark"]["decode_tokens_per_second"]["values"])
    value, bounds = transformed((value, bounds), lambda log: -math.expm1(-log))
    return Figure(value, bounds, repetitions, "repetitions")


def more_bytes(cell: Cell, results: Results, earlier: Earlier) -> Figure:
    """Loaded bytes now ÷ then - 1."""
    then = earlier.rows[cell.method]["weight_bytes"]
    return Figure(None, missing=NO_WEIGHTS) if then is None else Figure(cell.weight_bytes / then - 1, exact=True)


def less_recovery(cell: Cell, results: Results, earlier: Earlier) -> Figure:
    """Recovery then - now, of the same tasks with the same items."""
    now, then = cell.row.get("tasks_overall"), earlier.rows[cell.method].get("tasks_overall")
    if now is None or then is None or now["recovery"] is None or then["recovery"] is None:
        return Figure(None, missing=NO_TASKS)
    if task_items(cell.row) != task_items(earlier.rows[cell.method]):
        return Figure(None, missing="not compared: the earlier run has other tasks or items")
    value, bounds = independent_difference(
        then["recovery"], then["recovery_ci95"], now["recovery"], now["recovery_ci95"]
    )
    return Figure(value, bounds, now["items"], "items")


def task_items(row: SummaryRow) -> dict[str, tuple[int, str | None]]:
    """{task: (number of items, hash of all that was asked)}."""
    return {name: (task["items"], task.get("prompts_sha256")) for name, task in (row.get("tasks") or {}).items()}


FIGURES = {
    "kl_nats": more_kl,
    "perplexity_change_percent": more_perplexity,
    "recovery": less_recovery,
    "weight_bytes": more_bytes,
    "decode_rate_ratio": less_speed,
}
assert FIGURES.keys() == WORSE_KINDS.keys()
