"""Was a matrix, was a model, quantized and dequantized? A verdict from how well each format's grid fits.

Of every format, group size and axis, the mean squared distance of the weights from the nearest level (in steps) is
compared with that of the same groups without a grid. `ratio` is the root of the quotient, 1 where there is no trace;
t is Student's of the difference over groups. A matrix is called dequantized where the ratio is at most RATIO_LIMIT and
t at most T_LIMIT; weights never quantized gave ratios from 0.91 up (tests/benchmark/integrity_detection.md). Formats
that fit about as well are subsets of one another: the fewest bits count, then the largest group.

Where no grid fits, few distinct values (as of groups that are not neighbours, or of one scale a matrix) are a trace.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from scipy import stats

from quantharm.detection.grids import FORMATS, Format, fit, without_grid
from quantharm.detection.weights import Matrix

BLOCKS = (32, 64, 128, 256)  # of the codebooks
GROUPS = (32, 64, 128)  # of the integers; by whole row or column as well
RATIO_LIMIT = 0.8
T_LIMIT = -10.0
SCREENED_WEIGHTS = 8_192  # tried first
SCREEN_LIMIT = 0.9
WEAKEST_GROUP = 0.25  # of the root mean square; weaker ones, as of dead neurons, hold the noise of what came after
LEAST_GROUPS = 8  # with enough weights away from zero
FITS_AS_WELL = 0.93  # share of the best fit's 1 - ratio²
DISTINCT_LIMIT = 0.7  # of what weights of the same spread and dtype have
DISTINCT_JITTER = 0.02  # relative: some steps of bfloat16
AXES = {1: "input", 0: "output"}
SEED = 0


@dataclass(frozen=True)
class Trial:
    """One format, group size and axis tried on one matrix."""

    format: Format
    group_size: int | None  # None: a whole row or column
    axis: int
    r: float  # idempotence ratio ‖W - deq(Q(W))‖ / ‖W‖
    r_reference: float  # of the same groups without a grid
    ratio: float
    t: float

    @property
    def is_trace(self) -> bool:
        return self.ratio <= RATIO_LIMIT and self.t <= T_LIMIT


def groups_of(matrix: Matrix, kind: Format, size: int | None, axis: int) -> torch.Tensor | None:
    """[groups, size] of the sample; None where the matrix is too short for such groups.

    bitsandbytes cuts blocks from the flattened matrix, so a block may go on in the next row; groups of integers end
    with their row.
    """
    if size is None:
        return torch.cat(matrix.row_slabs) if axis == 1 else matrix.column_lines
    if (matrix.columns if axis == 1 else matrix.rows) <= size and kind.name == "integer":
        return None  # that is the whole row
    slabs = matrix.row_slabs if axis == 1 else matrix.column_slabs
    if kind.name != "integer" and axis == 1:
        slabs = [slab.reshape(1, -1) for slab in slabs]
    whole = [slab[:, : slab.shape[1] // size * size].reshape(-1, size) for slab in slabs]
    groups = torch.cat(whole)
    return groups if len(groups) else None


def try_format(matrix: Matrix, kind: Format, size: int | None, axis: int, random: torch.Generator) -> Trial | None:
    """None where too few groups can be judged. A few groups first: most formats fit so badly that these are enough."""
    groups = groups_of(matrix, kind, size, axis)
    if groups is None:
        return None
    few = max(2 * LEAST_GROUPS, SCREENED_WEIGHTS // groups.shape[1])
    if len(groups) > 2 * few:
        screened = measure(groups[torch.linspace(0, len(groups) - 1, few).long()], matrix, kind, size, axis, random)
        if screened is not None and screened.ratio > SCREEN_LIMIT:
            return screened
    return measure(groups, matrix, kind, size, axis, random)


def measure(
    groups: torch.Tensor, matrix: Matrix, kind: Format, size: int | None, axis: int, random: torch.Generator
) -> Trial | None:
    found = fit(groups, kind)
    reference = fit(without_grid(groups, found.step, matrix.dtype, random), kind)
    least = groups.shape[1] // 4
    energy = groups.square().mean(1)
    strong = energy >= WEAKEST_GROUP**2 * energy.mean()
    judged = strong & (found.count >= least) & (reference.count >= least)
    if judged.sum() < LEAST_GROUPS:
        return None
    error, expected = found.error[judged].double(), reference.error[judged].double()
    difference = error - expected
    deviation = float(difference.std() / math.sqrt(len(difference)))
    norm = groups.double().square().sum()
    return Trial(
        kind,
        size,
        axis,
        float((found.squared.double().sum() / norm).sqrt()),
        float((reference.squared.double().sum() / norm).sqrt()),
        float((error.mean() / expected.mean()).sqrt()) if expected.mean() > 0 else 1.0,
        float(difference.mean()) / deviation if deviation > 0 else 0.0,
    )


def all_trials(matrix: Matrix) -> list[Trial]:
    random = torch.Generator().manual_seed(SEED)
    found = [
        try_format(matrix, kind, size, axis, random)
        for axis in AXES
        for kind in FORMATS
        for size in ((*GROUPS, None) if kind.name == "integer" else BLOCKS)
    ]
    return [trial for trial in found if trial is not None]


def best_trial(trials: list[Trial]) -> Trial | None:
    """The simplest format among those that fit about as well as the best: fewest bits, then largest group."""
    traces = [t for t in trials if t.is_trace]
    if not traces:
        return None
    enough = FITS_AS_WELL * max(1 - t.ratio**2 for t in traces)
    return min(
        (t for t in traces if 1 - t.ratio**2 >= enough),
        key=lambda t: (t.format.bits, -(t.group_size or math.inf), -t.axis, t.ratio),
    )


def distinct_share(lines: torch.Tensor) -> float:
    """Mean over lines of (distinct values / values), zeros left out; lines: [lines, n]."""
    ordered = lines.sort(1).values
    new = (ordered[:, 1:] != ordered[:, :-1]) & (ordered[:, 1:] != 0)
    values = (lines != 0).sum(1)
    distinct = new.sum(1) + (ordered[:, 0] != 0)
    kept = values > 0
    return float((distinct[kept] / values[kept]).mean()) if kept.any() else 1.0


def distinct_values(matrix: Matrix) -> dict[str, float]:
    """Shares of distinct values in blocks of 128 and in rows, beside those after a small relative move."""
    random = torch.Generator().manual_seed(SEED)
    rows = torch.cat(matrix.row_slabs)
    moved = 1 + DISTINCT_JITTER * (2 * torch.rand(rows.shape, generator=random) - 1)
    reference = (rows * moved).to(matrix.dtype).float()
    blocks = min(128, rows.shape[1])

    def cut(lines: torch.Tensor) -> torch.Tensor:
        return lines[:, : lines.shape[1] // blocks * blocks].reshape(-1, blocks)

    return {
        "distinct_share_of_block": distinct_share(cut(rows)),
        "distinct_share_of_block_reference": distinct_share(cut(reference)),
        "distinct_share_of_row": distinct_share(rows),
        "distinct_share_of_row_reference": distinct_share(reference),
    }


def scan_matrix(matrix: Matrix) -> dict[str, Any]:
    """The verdict on one matrix, and the figures that it rests on: of the best format, or of the best that failed."""
    trials = all_trials(matrix)
    found = best_trial(trials)
    shown = found or min(trials, key=lambda t: t.ratio, default=None)
    distinct = distinct_values(matrix)
    few = distinct["distinct_share_of_row"] <= DISTINCT_LIMIT * distinct["distinct_share_of_row_reference"]
    zeros = torch.cat([s.flatten() for s in matrix.row_slabs]) == 0
    return {
        "name": matrix.name,
        "shape": [matrix.rows, matrix.columns],
        "stored_dtype": str(matrix.stored).removeprefix("torch."),
        "effective_dtype": str(matrix.dtype).removeprefix("torch."),
        "sampled_weights": matrix.sampled,
        "verdict": "dequantized" if found or few else "no trace",
        "method": found.format.label if found else "few distinct values" if few else None,
        "bits": found.format.bits if found else None,
        "group_size": (found.group_size or "whole") if found else None,
        "axis": AXES[found.axis] if found else None,
        "r": shown and shown.r,
        "r_reference": shown and shown.r_reference,
        "ratio": shown and shown.ratio,
        "t": shown and shown.t,
        "closest": shown and f"{shown.format.label}, groups of {shown.group_size or 'a whole line'}",
        **distinct,
        "zero_share": float(zeros.float().mean()),
        "p_value": p_value(found, few, len(trials)),
    }


def p_value(found: Trial | None, few: bool, trials: int) -> float | None:
    """Of the best format's t, times the number of formats tried (Bonferroni); None where no grid was found."""
    if found is None:
        return None
    return float(min(1.0, trials * stats.norm.sf(-found.t)))


def scan_model(matrices: list[dict[str, Any]]) -> dict[str, Any]:
    """The model's verdict: what most weights with a trace were stored as. matrices: of scan_matrix."""
    if not matrices:
        return {"verdict": "not scanned", "explanation": "no linear matrix in floating point was found"}
    sizes = {m["name"]: m["shape"][0] * m["shape"][1] for m in matrices}
    traces = [m for m in matrices if m["verdict"] == "dequantized"]
    weights: dict[tuple, int] = {}
    for m in traces:
        key = (m["method"], m["bits"], m["group_size"], m["axis"])
        weights[key] = weights.get(key, 0) + sizes[m["name"]]
    total, traced = sum(sizes.values()), sum(sizes[m["name"]] for m in traces)
    method, bits, group_size, axis = max(weights, key=weights.get, default=(None,) * 4)
    p_values = [m["p_value"] for m in traces if m["p_value"] is not None]
    coverage = sum(m["sampled_weights"] for m in matrices) / total
    shared = {
        "matrices_scanned": len(matrices),
        "matrices_with_trace": len(traces),
        "share_of_weights": traced / total,
        "coverage": coverage,
        "effective_dtypes": sorted({m["effective_dtype"] for m in matrices}),
    }
    if not traces:
        closest = min(matrices, key=lambda m: m["ratio"] if m["ratio"] is not None else math.inf)
        return {
            "verdict": "no trace",
            "method": None,
            "bits": None,
            "group_size": None,
            "axis": None,
            "confidence": None,
            **shared,
            "explanation": f"no trace of quantization in {len(matrices)} matrices (closest: ratio "
            f"{closest['ratio'] or 1:.2f} in {closest['name']}), which is no proof",
        }
    agreement = weights[(method, bits, group_size, axis)] / traced
    where = "by row or column" if group_size == "whole" else f"in groups of {group_size}" if group_size else ""
    return {
        "verdict": "dequantized",
        "method": method,
        "bits": bits,
        "group_size": group_size,
        "axis": axis,
        "confidence": agreement * (1 - min(1.0, len(matrices) * min(p_values))) if p_values else None,
        **shared,
        "explanation": f"{len(traces)} of {len(matrices)} matrices ({traced / total:.0%} of their weights) lie on the "
        f"levels of {' '.join(filter(None, [method, where, axis and f'along the {axis} dimension']))}",
    }
