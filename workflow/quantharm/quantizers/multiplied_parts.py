"""Are neighbours of a row all multiplied alike, or all zero, as one wrong scale makes them?

In 3 and 4 bits rounding costs so much that a doubled or missing scale is no more than ten times the usual error. But it
moves all weights of its group the same way, and rounding cannot: to the nearest level it turns a weight to zero, or to
between two thirds and twice its size, and some of a group's stronger weights are always near 1. So a part is wrong
where its stronger half is everywhere above 3/2 of the original, between zero and 2/3, or of the other sign; or where
it is zero and the original's is not small beside its row. A part on one level alone is left in peace: to the lowest
level rounding does lift all of it by half or more, where the original's weights are alike (it was quantized before), or
lets it fall, where that level lies next to zero (bitsandbytes' FP4).
"""

from typing import NamedTuple

import torch

SIZES = (32, 16)  # columns; formats have groups of 16 and more
RISE, FALL = 1.5, 2 / 3
ONE_LEVEL = 1.2  # sizes within this are one level
SPARED = {32: 1, 16: 0}  # weights of the stronger half that may say otherwise
WEAK = 0.1  # of the root mean square norm of a part: weaker ones are not judged
LARGE = 0.25  # of the row's largest weight: 3 bits a group or row keep it
HALF_STEP = 0.6  # of the row's first level beside zero: 2 bits let a third of the largest weight go
KEPT_IN_BYTES = 1 / 254  # of the matrix's largest weight: 8 bits with one scale a matrix keep it
DIFFERENT = 0.3  # relative error of a part that is looked at
LET_GO = 1.01  # weights that rounding let go are off by no more than their norm, and
LET_GO_COSINE = 0.98  # no multiple of the original's, as under a wrong scale; seen: up to 0.962


class Multiplied(NamedTuple):
    """A part whose weights are multiplied by one number."""

    gain: float
    row: int
    column: int  # the first
    size: int


def were_let_go(error: torch.Tensor, held: torch.Tensor, own: torch.Tensor, product: torch.Tensor) -> torch.Tensor:
    """Whether each part shrank as weights do that a weighed rounding lets go.

    error, held, own: norms of each part's error, of the file's weights and of the original's; product: Σ held · own.
    """
    return (error <= LET_GO * own) & (product < LET_GO_COSINE * held * own + 1e-30)


def multiplied_part(
    dequantized: torch.Tensor, original: torch.Tensor, rescaled: bool, weighed: bool = False
) -> Multiplied | None:
    """The strongest such part of a matrix; dequantized, original: [rows, columns] float32, groups side by side.

    weighed: whether the rounding was, by a calibration text; then parts that it let go are left in peace, and so are
    those that shrank by one factor: 32 weights that no text excites get any scale (0.52 to 0.63 in SmolLM2's Q4_K_M).

    rescaled: whether the original is only known up to factors of its columns, which are then estimates: parts of 16
    are not judged, and no weight may say otherwise.
    """
    for size in SIZES[: 1 if rescaled else 2]:
        part = of_size(dequantized, original, size, 0 if rescaled else SPARED[size], weighed)
        if part is not None:
            return part
    return None


def of_size(
    dequantized: torch.Tensor, original: torch.Tensor, size: int, spared: int, weighed: bool
) -> Multiplied | None:
    held, own = (in_parts(matrix, size) for matrix in (dequantized, original))  # [parts, size]
    held_norm, own_norm, error = (part.norm(dim=1) for part in (held, own, held - own))
    strong = own_norm > WEAK * own_norm.square().mean().sqrt()
    moved = (held_norm > own_norm / 0.77) | (held_norm < 0.77 * own_norm) | (error > 1.5 * own_norm)
    if weighed:
        moved &= ~were_let_go(error, held_norm, own_norm, (held * own).sum(1))
    looked_at = (strong & moved & (error > DIFFERENT * own_norm)).nonzero().flatten()  # few, in a sound matrix
    held, own = held[looked_at], own[looked_at]
    stronger = own.abs().topk(size // 2, dim=1).indices
    ratios = (held.gather(1, stronger) / own.gather(1, stronger)).sort(dim=1).values
    lowest, highest = ratios[:, spared], ratios[:, -1 - spared]
    sizes = held.gather(1, stronger).abs().sort(dim=1).values
    several = sizes[:, -1 - spared] > ONE_LEVEL * sizes[:, 0]
    peaks = original.abs().amax(1)
    let_go = torch.maximum(LARGE * peaks, HALF_STEP * first_levels(dequantized, size))
    kept = let_go[looked_at * size // padded(original.shape[1], size)].clamp_min(KEPT_IN_BYTES * peaks.max())
    zero = (held == 0).all(1) & (own.abs().amax(1) > kept)
    fallen = (lowest > 0) & (highest < FALL) & (not weighed)
    wrong = (several & ((lowest > RISE) | fallen)) | (highest < 0) | zero
    if not bool(wrong.any()):
        return None
    worst = int(own_norm[looked_at].masked_fill(~wrong, 0.0).argmax())
    row, part = divmod(int(looked_at[worst]), padded(original.shape[1], size) // size)
    return Multiplied(float(ratios[worst].median()), row, part * size, size)


def first_levels(dequantized: torch.Tensor, size: int) -> torch.Tensor:
    """The smallest magnitude beside zero of a part of each row, of its part with the largest; [rows]."""
    magnitudes = in_parts(dequantized.abs(), size)
    smallest = magnitudes.masked_fill(~(magnitudes > 0), torch.inf).amin(1)
    return smallest.masked_fill(~smallest.isfinite(), 0.0).view(len(dequantized), -1).amax(1)


def padded(columns: int, size: int) -> int:
    return columns + -columns % size


def in_parts(matrix: torch.Tensor, size: int) -> torch.Tensor:
    """[rows, columns] → [rows · ⌈columns / size⌉, size], the last of a row filled with zeros."""
    return torch.nn.functional.pad(matrix, (0, -matrix.shape[1] % size)).reshape(-1, size)
