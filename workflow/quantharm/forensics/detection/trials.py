"""The fit of one matrix to every format, group size and axis, beside that of the same weights without a grid.

`ratio` is the root of (mean squared distance from the nearest level, in steps) over that of the same groups without a
grid, 1 where there is no trace; t is Student's of the difference over groups. A fit is a trace where the ratio is at
most RATIO_LIMIT and t at most T_LIMIT; weights never quantized gave ratios from 0.89 up
(tests/benchmark/integrity_detection.md). Formats that fit about as well are subsets of one another: the fewest bits
count, then the largest group, then the smallest error.
"""

import math
from dataclasses import dataclass

import torch

from quantharm.forensics.detection.lattice_fit import FORMATS, Format, fit, steps_of, without_grid
from quantharm.forensics.detection.weights import Matrix

BLOCKS = (32, 64, 128, 256)  # of the codebooks
GROUPS = (32, 64, 128, None)  # of the integers; None: by whole row or column
SIZES: dict[tuple[str, int], tuple[int | None, ...]] = {  # instead, for some formats; along the input dimension alone
    ("integer", 5): (32,),  # Q5_K, Q5_0
    ("integer", 6): (16,),  # Q6_K
    ("E2M1", 4): (16, 32),  # NVFP4, MXFP4
    ("E4M3", 8): (128, None),  # blocks; a row or a matrix
}
SMALL_GROUPS = {("integer", 2): (16,), ("integer", 3): (16,)}  # in addition, along the input dimension: Q2_K, Q3_K
RATIO_LIMIT = 0.8
T_LIMIT = -10.0
SCREENED_WEIGHTS = 8_192  # on which a format is tried first
SCREEN_LIMIT = 0.9
WEAKEST_GROUP = 0.25  # of the root mean square; weaker groups, of dead neurons, hold noise of later training
LEAST_GROUPS = 8  # with enough weights away from zero
FITS_AS_WELL = 0.93  # share of the best fit's 1 - ratio²
AXES = {1: "input", 0: "output"}
SEED = 0


@dataclass(frozen=True)
class Trial:
    """One format, group size and axis, tried on one matrix."""

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
    """The sample in groups, [groups, size]; None where the matrix is too short for such groups.

    bitsandbytes cuts blocks from the flattened matrix, so a block may go on in the next row; other groups end with the
    row.
    """
    flattened = kind.name in ("NF4", "FP4")
    if size is None:
        return torch.cat(matrix.row_slabs) if axis == 1 else matrix.column_lines
    if (matrix.columns if axis == 1 else matrix.rows) <= size and not flattened:
        return None  # that is the whole row
    slabs = matrix.row_slabs if axis == 1 else matrix.column_slabs
    if flattened and axis == 1:
        slabs = [slab.reshape(1, -1) for slab in slabs]
    whole = [slab[:, : slab.shape[1] // size * size].reshape(-1, size) for slab in slabs]
    groups = torch.cat(whole)
    return groups if len(groups) else None


def try_format(matrix: Matrix, kind: Format, size: int | None, axis: int, random: torch.Generator) -> Trial | None:
    """The trial of a format, None where too few groups can be judged; a few groups first, as most formats fit badly."""
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
    """The trial of a format on these groups; None where too few of them can be judged."""
    fitted = fit(groups, kind)
    reference = fit(without_grid(groups, steps_of(groups, kind, fitted), matrix.dtype, random), kind)
    least = groups.shape[1] // 4
    energy = groups.square().mean(1)
    strong = energy >= WEAKEST_GROUP**2 * energy.mean()
    judged = strong & (fitted.count >= least) & (reference.count >= least)
    if judged.sum() < LEAST_GROUPS:
        return None
    error, expected = fitted.error[judged].double(), reference.error[judged].double()
    difference = error - expected
    deviation = float(difference.std() / math.sqrt(len(difference)))
    norm = groups.double().square().sum()
    return Trial(
        kind,
        size,
        axis,
        float((fitted.squared.double().sum() / norm).sqrt()),
        float((reference.squared.double().sum() / norm).sqrt()),
        float((error.mean() / expected.mean()).sqrt()) if expected.mean() > 0 else 1.0,
        float(difference.mean()) / deviation if deviation > 0 else 0.0,
    )


def sizes_of(kind: Format, axis: int) -> tuple[int | None, ...]:
    """The group sizes in which a format occurs, along an axis."""
    key = (kind.name, kind.bits)
    if key in SIZES:
        return SIZES[key] if axis == 1 else ()
    small = SMALL_GROUPS.get(key, ()) if axis == 1 else ()
    return (*small, *(GROUPS if kind.name == "integer" else BLOCKS))


def all_trials(matrix: Matrix) -> list[Trial]:
    """Every format, group size and axis that can be tried on a matrix."""
    random = torch.Generator().manual_seed(SEED)
    trials = [
        try_format(matrix, kind, size, axis, random)
        for axis in AXES
        for kind in FORMATS
        for size in sizes_of(kind, axis)
    ]
    return [trial for trial in trials if trial is not None]


def best_trial(trials: list[Trial]) -> Trial | None:
    """The simplest format among those that fit about as well as the best: fewest bits, then the largest group."""
    traces = [t for t in trials if t.is_trace]
    if not traces:
        return None
    enough = FITS_AS_WELL * max(1 - t.ratio**2 for t in traces)
    return min(
        (t for t in traces if 1 - t.ratio**2 >= enough),
        key=lambda t: (t.format.bits, -(t.group_size or math.inf), -t.axis, t.r),
    )
