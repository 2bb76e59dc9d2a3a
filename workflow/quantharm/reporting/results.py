"""The finished result files of one model, and the paired differences from its baseline.

Cells that did not run on one device, in one dtype and under one protocol are refused: their figures are not comparable.
"""

import itertools
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import pandas

from quantharm.common.errors import UserError
from quantharm.common.files import read_json, read_parquet
from quantharm.common.left_out import LeftOut
from quantharm.common.provenance import computed_differently
from quantharm.common.statistics import (
    holm,
    median_ratio_interval,
    p_value,
    paired_share_interval,
    stratified_mean,
    weighted_mean_interval,
    widened,
)

BASELINE = "baseline"
TEXT_CATEGORY = "text"  # as in logits.py, which needs torch
STAGES = ("generation", "perplexity", "divergence")
LEVEL = 0.05  # a difference among several is claimed below this p-value, adjusted for their number
Rows = dict[str, Any]
Bounds = list[float] | None


def other_hardware_kl(divergence: dict[str, Any], thresholds: dict[str, Any]) -> float:
    """Mean KL in nats of one checkpoint between two processors: the config's for its dtype, or what its store measured.

    The store's figure is of rounding on one machine, and two add up to at most twice that. divergence: of any cell.
    """
    store = divergence["store"]
    rounding = (store.get("hardware_floor") or {}).get("rounding_kl_nats") or 0.0
    return max(thresholds["other_hardware_kl_nats"].get(store["dtype"], 0.0), 2 * rounding)


@dataclass
class Cell:
    """One model × method: the row of summary.json, the stages' records, and differences from the baseline."""

    method: str
    row: Rows
    quantization: Rows
    perplexity: Rows
    divergence: Rows
    generation: Rows
    checks: Rows
    integrity: Rows | None
    folder: Path
    changes: dict[str, Any] = field(default_factory=dict)  # from the baseline: figure → (change, interval)

    @property
    def failed(self) -> list[str]:
        return self.checks["failed"]

    @property
    def synthetic(self) -> bool:
        """Whether the weights are random numbers, so that no figure of quality means anything."""
        return self.row["synthetic"]

    @property
    def decoding(self) -> str:
        """How the decoding was timed that is compared with the baseline's: captured where both could be, else eager."""
        return "captured" if "captured_decode_percent" in self.changes else "eager"

    @property
    def decode_change(self) -> tuple[float, Bounds]:
        """Change of the decode rate in percent, with its interval."""
        return self.changes["captured_decode_percent" if self.decoding == "captured" else "decode_percent"]

    @property
    def by_category(self) -> dict[str, Rows]:
        """KL by prompt category, the text apart."""
        return {c: v for c, v in self.divergence["by_category"].items() if c != TEXT_CATEGORY}


@dataclass(frozen=True)
class Difference:
    """Mean KL of one method minus another's, in nats, with its 95 % interval and its p-value among all pairs (Holm)."""

    nats: float
    ci95: Bounds
    p_value: float

    @property
    def measurable(self) -> bool:
        """Whether the interval excludes zero, and does so among all pairs that were compared."""
        return self.ci95 is not None and not self.ci95[0] <= 0 <= self.ci95[1] and self.p_value < LEVEL

    @property
    def turned(self) -> "Difference":
        return Difference(-self.nats, self.ci95 and [-self.ci95[1], -self.ci95[0]], self.p_value)


@dataclass
class Results:
    """All cells of one model, the baseline's first."""

    model: str
    folder: Path
    cells: list[Cell]
    thresholds: Rows  # the config's `report:`
    left_out: list[LeftOut] = field(default_factory=list)  # cells that could not be finished
    kl_differences: dict[tuple[str, str], Difference] = field(default_factory=dict)
    calibration_study: Rows | None = None  # calibration_study.json, where `snakemake calibration` was run
    noise_study: list[Rows] | None = None  # the rows of noise_sweep.json, where `snakemake defense` was run
    monitor_history: pandas.DataFrame | None = None  # a row a run, where `snakemake monitor` was run

    @property
    def baseline(self) -> Cell:
        return self.cells[0]

    @property
    def methods(self) -> list[Cell]:
        return self.cells[1:]

    @property
    def believed(self) -> list[Cell]:
        """The cells that passed their checks."""
        return [cell for cell in self.cells if not cell.failed]

    @property
    def synthetic(self) -> bool:
        return self.baseline.synthetic

    @property
    def device(self) -> str:
        """Where the model ran: `NVIDIA H200`, `NVIDIA H200 × 2` or `CPU: …`."""
        ran = self.baseline.generation["provenance"]
        return ran["device"] + (f" × {ran['gpus']}" if ran.get("gpus", 1) > 1 else "")

    @property
    def noise_floor(self) -> float:
        """Mean KL in nats of the baseline against its own store."""
        return self.baseline.row["kl_nats_mean"]

    @property
    def other_hardware_kl(self) -> float:
        """Mean KL in nats of one checkpoint between two processors, in this run's dtype."""
        return other_hardware_kl(self.baseline.divergence, self.thresholds)

    @property
    def least_kl(self) -> float:
        """A mean KL up to here says nothing about quality: noise of this device, or what other hardware changes."""
        return max(self.thresholds["noise_floor_factor"] * self.noise_floor, self.other_hardware_kl)

    @property
    def calibration_ranges(self) -> dict[str, float]:
        """Range of KL in nats over the calibration samples that a method could have had."""
        return {m: v["range"] for m, v in (self.calibration_study or {}).get("spread_kl_nats", {}).items()}

    @property
    def categories(self) -> list[str]:
        return list(self.baseline.generation["by_category"])


def read_cell(folder: Path, row: Rows) -> Cell:
    records = {stage: read_json(folder / f"{stage}.json") for stage in ("quantization", *STAGES, "checks")}
    integrity = folder / "integrity.json"
    measured = integrity.is_file() and row.get("integrity_verified", True) is not None  # else it is of an earlier run
    return Cell(row["method"], row, **records, integrity=read_json(integrity) if measured else None, folder=folder)


def read_results(folder: Path, thresholds: Rows) -> Results:
    """The results of one model, by the config's `report:`; raises UserError where cells cannot be compared."""
    summary = read_json(folder / "summary.json")
    rows = summary["cells"]
    cells = [read_cell(folder / row["method"], row) for row in rows]
    cells.sort(key=lambda cell: cell.method != BASELINE)
    if not cells or cells[0].method != BASELINE:
        raise UserError(f"{folder}/summary.json has no cell `{BASELINE}`; run the stage `summary` again")
    require_comparable(cells)
    for cell in cells[1:]:
        cell.changes = changes_from_baseline(cell, cells[0], thresholds["speed_process_spread_percent"])
    study, noise, history = (
        folder / "calibration_study.json",
        folder / "noise_sweep.json",
        folder / "monitor/history.parquet",
    )
    results = Results(
        rows[0]["model"],
        folder,
        cells,
        thresholds,
        left_out=summary.get("left_out", []),
        calibration_study=read_json(study) if study.is_file() else None,
        noise_study=read_json(noise)["rows"] if noise.is_file() else None,
        monitor_history=read_parquet(history) if history.is_file() else None,
    )
    results.kl_differences = kl_differences(results.methods, results.calibration_ranges, results.least_kl)
    return results


def require_comparable(cells: list[Cell]) -> None:
    """One device, one dtype and one way to compute in every stage of every cell, one perplexity protocol."""
    baseline = cells[0]
    for cell in cells:
        for stage in STAGES:
            found = computed_differently(getattr(cell, stage)["provenance"], baseline.generation["provenance"])
            for key, (mine, reference) in found.items():
                raise UserError(
                    f"{cell.row['model']} × {cell.method} ran its stage {stage} with {key} {mine!r} and the "
                    f"baseline with {reference!r}: a report does not compare the two; run all cells on one device"
                )
        if cell.perplexity["protocol"] != baseline.perplexity["protocol"]:
            raise UserError(
                f"{cell.row['model']} × {cell.method} was scored with protocol {cell.perplexity['protocol']} and the "
                f"baseline with {baseline.perplexity['protocol']}: delete both perplexity.json and run again"
            )


def percent_of_ratio(ratio):
    return 100 * (ratio - 1)


def process_spread(percent: float) -> float:
    """Half-width in ln of the ratio of two processes' times; percent: their standard deviation. Two, so √2 of it."""
    return 1.96 * 2**0.5 * math.log1p(percent / 100)


def captured_rate(cell: Cell) -> Rows | None:
    """Timings of the captured decode; None where there is none."""
    return cell.generation["benchmark"].get("captured", {}).get("decode_tokens_per_second")


def changes_from_baseline(cell: Cell, baseline: Cell, spreads: dict[str, float]) -> dict[str, Any]:
    """{figure: (change, 95 % interval)}: paired over prompts; the benchmark's repetitions are two sets, not pairs.

    spreads: how much two processes of one model differ in speed, in percent (config: speed_process_spread_percent);
    repetitions within one process do not show it.
    """
    device = cell.generation["provenance"]["device_type"]
    spread = process_spread(spreads[device])
    columns = ["prompt_id", "category", "seconds", "new_tokens", "succeeded"]
    both = read_parquet(cell.folder / "generation.parquet", columns).merge(
        read_parquet(baseline.folder / "generation.parquet", columns), on="prompt_id", suffixes=("", "_baseline")
    )
    seconds, reference = both["seconds"].to_numpy(), both["seconds_baseline"].to_numpy()
    tokens = (both["new_tokens"] - both["new_tokens_baseline"]).to_numpy(float)
    now, before = both["succeeded"].astype(bool), both["succeeded_baseline"].astype(bool)
    gained, lost = int((now & ~before).sum()), int((before & ~now).sum())
    share = paired_share_interval(gained, lost, len(both))
    changes = {
        "seconds_percent": (
            percent_of_ratio(seconds.sum() / reference.sum()),
            in_percent(widened(seconds.sum() / reference.sum(), weighted_mean_interval(seconds, reference), spread)),
        ),
        "new_tokens": (float(tokens.mean()), weighted_mean_interval(tokens, numpy.ones(len(both)))),
        "succeeded_points": (100.0 * (gained - lost) / len(both), share and [100 * bound for bound in share]),
    }
    for name, figure in (("prefill", "prefill_seconds"), ("decode", "decode_tokens_per_second")):
        mine, theirs = (c.generation["benchmark"][figure]["values"] for c in (cell, baseline))
        changes[f"{name}_percent"] = change_of_medians(mine, theirs, spread)
    captured, reference = captured_rate(cell), captured_rate(baseline)
    if captured and reference:
        spread = process_spread(spreads[f"{device}_captured"])
        changes["captured_decode_percent"] = change_of_medians(captured["values"], reference["values"], spread)
    return changes


def in_percent(bounds: Bounds) -> Bounds:
    return bounds and [percent_of_ratio(bound) for bound in bounds]


def change_of_medians(mine: list[float], reference: list[float], spread: float) -> tuple[float, Bounds]:
    """(percent, interval) of the ratio of two medians of repetitions; spread: as process_spread gives it."""
    ratio = float(numpy.median(mine) / numpy.median(reference))
    return percent_of_ratio(ratio), in_percent(median_ratio_interval(mine, reference, spread))


def kl_differences(cells: list[Cell], ranges: dict[str, float], floor: float) -> dict[tuple[str, str], Difference]:
    """{(first, second): mean KL of the first minus the second's}, paired over prompts within categories.

    ranges: how much KL varies with a method's calibration samples, in nats: intervals are widened by it on both sides.
    A difference of no more than it and `floor` (nats that say nothing) has the p-value 1.
    """
    means = {}
    for cell in cells:
        rows = read_parquet(cell.folder / "divergence.parquet", ["prompt_id", "category", "kl_nats"])
        rows = rows[rows["category"] != TEXT_CATEGORY]
        means[cell.method] = rows.groupby(["category", "prompt_id"], sort=False)["kl_nats"].mean()
    figures, p_values = {}, {}
    for first, second in itertools.combinations(means, 2):
        difference = (means[first] - means[second]).dropna()
        strata = [part.to_numpy() for _, part in difference.groupby(level="category", sort=False)]
        extra = ranges.get(first, 0.0) + ranges.get(second, 0.0)
        found = stratified_mean(strata)
        bounds = found["ci95"] and [found["ci95"][0] - extra, found["ci95"][1] + extra]
        figures[first, second] = found["mean"], bounds
        p_values[first, second] = p_value(strata, extra + floor)
    adjusted = holm(p_values)
    pairs = {pair: Difference(*figure, adjusted[pair]) for pair, figure in figures.items()}
    return pairs | {pair[::-1]: difference.turned for pair, difference in pairs.items()}


def window_losses(cell: Cell) -> pandas.DataFrame:
    """perplexity.parquet: window, nll_sum_nats, targets."""
    return read_parquet(cell.folder / "perplexity.parquet")


def ran_on_one_device(models: list[Results]) -> bool:
    """Whether the times of several models may stand side by side."""
    ran = [results.baseline.generation["provenance"] for results in models]
    same = not any(computed_differently(other, ran[0]).keys() - {"dtype", "compute_dtype"} for other in ran[1:])
    return same and len({results.device for results in models}) == 1
