"""Was a matrix, was a model, quantized and dequantized? The verdict, and the figures that it rests on.

A matrix is called dequantized where some format fits far better than chance (trials.py). Where none fits well, columns
in groups of any order (unordered.py) or few distinct values are a trace as well. A model is called dequantized where
more of its matrices are than false alarms explain: one of two hundred is not enough.
"""

import math

import torch

from quantharm.common.records.integrity import DistinctShares, MatrixScan, ScanFigures, ScanVerdict
from quantharm.forensics.detection.chance import chance_of, is_dequantized
from quantharm.forensics.detection.trials import AXES, SEED, Trial, all_trials, best_trial
from quantharm.forensics.detection.unordered import find_unordered
from quantharm.forensics.detection.weights import Matrix

DISTINCT_LIMIT = 0.7  # of the distinct values in weights of the same spread and dtype
DISTINCT_JITTER = 0.02  # relative: some steps of bfloat16
SHOWN_TRACES = 3
FITS_WELL = 0.4  # ratio; groups in any order fit groups of neighbours half as well (0.65 and more)


def distinct_share(lines: torch.Tensor) -> float:
    """Mean over lines of (distinct values / values), zeros left out; lines: [lines, n]."""
    ordered = lines.sort(1).values
    new = (ordered[:, 1:] != ordered[:, :-1]) & (ordered[:, 1:] != 0)
    values = (lines != 0).sum(1)
    distinct = new.sum(1) + (ordered[:, 0] != 0)
    kept = values > 0
    return float((distinct[kept] / values[kept]).mean()) if kept.any() else 1.0


def distinct_values(matrix: Matrix) -> DistinctShares:
    """Shares of distinct values in blocks of 128 and in rows, and the same after a small relative move."""
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


def scan_matrix(matrix: Matrix) -> MatrixScan:
    """The verdict on one matrix, and the figures of the best format, or of the best that failed."""
    trials = all_trials(matrix)
    best = best_trial(trials)
    shown = best or min(trials, key=lambda t: t.ratio, default=None)
    distinct = distinct_values(matrix)
    few = distinct["distinct_share_of_row"] <= DISTINCT_LIMIT * distinct["distinct_share_of_row_reference"]
    method: str | None
    bits: int | None
    group_size: int | str | None
    axis: str | None
    unordered = find_unordered(matrix) if best is None or best.ratio > FITS_WELL else None
    best = None if unordered else best
    if best:
        method, bits, group_size, axis = (
            best.format.label,
            best.format.bits,
            best.group_size or "whole",
            AXES[best.axis],
        )
    elif unordered:
        method, bits = f"{unordered.bits}-bit integer, columns in any order", unordered.bits
        group_size, axis = unordered.group_size, AXES[1]
    else:
        method, bits, group_size, axis = "few distinct values" if few else None, None, None, None
    zeros = torch.cat([s.flatten() for s in matrix.row_slabs]) == 0
    return {
        "name": matrix.name,
        "shape": [matrix.rows, matrix.columns],
        "stored_dtype": str(matrix.stored).removeprefix("torch."),
        "effective_dtype": str(matrix.dtype).removeprefix("torch."),
        "sampled_weights": matrix.sampled,
        "verdict": "dequantized" if method else "no trace",
        "method": method,
        "bits": bits,
        "group_size": group_size,
        "axis": axis,
        "r": shown.r if shown else None,
        "r_reference": shown.r_reference if shown else None,
        "ratio": shown.ratio if shown else None,
        "t": shown.t if shown else None,
        "closest": f"{shown.format.label}, groups of {shown.group_size or 'a whole line'}" if shown else None,
        **distinct,
        "zero_share": float(zeros.float().mean()),
        "p_value": p_value(best, len(trials)),
    }


def p_value(best: Trial | None, trials: int) -> float | None:
    """p-value of the best format's t times the number of formats tried (Bonferroni); None where no grid was found."""
    if best is None:
        return None
    tail = math.erfc(-best.t / math.sqrt(2)) / 2  # of the normal distribution, which t is over so many groups
    return min(1.0, trials * tail)


def scan_model(matrices: list[MatrixScan]) -> ScanVerdict:
    """The verdict on a model: the format of most weights that show a trace; matrices: of scan_matrix.

    `dequantized` where more matrices show a trace than in a checkpoint that was never quantized, `few traces` where
    some do but no more than that.
    """
    if not matrices:
        return {"verdict": "not scanned", "explanation": "no linear matrix in floating point was found"}
    sizes = {m["name"]: m["shape"][0] * m["shape"][1] for m in matrices}
    traces = [m for m in matrices if m["verdict"] == "dequantized"]
    weights: dict[tuple, int] = {}
    for m in traces:
        key = (m["method"], m["bits"], m["group_size"], m["axis"])
        weights[key] = weights.get(key, 0) + sizes[m["name"]]
    total, traced = sum(sizes.values()), sum(sizes[m["name"]] for m in traces)
    method, bits, group_size, axis = max(weights, key=lambda key: weights[key], default=(None,) * 4)
    dequantized = is_dequantized(len(traces), len(matrices))
    chance = chance_of(len(traces), len(matrices))
    shared: ScanFigures = {
        "verdict": "dequantized" if dequantized else "few traces" if traces else "no trace",
        "method": method,
        "bits": bits,
        "group_size": group_size,
        "axis": axis,
        "share_agreeing": weights[(method, bits, group_size, axis)] / traced if traces else None,
        "chance_if_never_quantized": chance,
        "matrices_scanned": len(matrices),
        "matrices_with_trace": len(traces),
        "share_of_weights": traced / total,
        "coverage": sum(m["sampled_weights"] for m in matrices) / total,
        "effective_dtypes": sorted({m["effective_dtype"] for m in matrices}),
    }
    if not traces:
        closest = min(matrices, key=lambda m: m["ratio"] if m["ratio"] is not None else math.inf)
        return {
            **shared,
            "explanation": f"no trace of quantization in {len(matrices)} matrices (closest: ratio "
            f"{closest['ratio'] or 1:.2f} in {closest['name']}), which is no proof",
        }
    where = "by row or column" if group_size == "whole" else f"in groups of {group_size}" if group_size else ""
    levels = " ".join(filter(None, [method, where, axis and f"along the {axis} dimension"]))
    share = f"{len(traces)} of {len(matrices)} matrices ({traced / total:.0%} of their weights)"
    lie = f"{share} lie on the levels of {levels}"
    if dequantized:
        return {**shared, "explanation": lie}
    return {
        **shared,
        "explanation": f"{lie}: too few to call the model dequantized (chance of so many in a model never quantized: "
        f"{chance:.2g}), look at {', '.join(m['name'] for m in traces[:SHOWN_TRACES])}",
    }
