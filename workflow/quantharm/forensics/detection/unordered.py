"""Integers in groups of columns that are no neighbours, as GPTQ's act-order leaves them.

Two columns of one group share a scale in every row, so the ratio of their weights is a fraction of two small integers
in every row. For columns of different groups, or weights never quantized, it is such a fraction by chance only: in a
third of the rows in bfloat16. So columns are compared in pairs over hundreds of rows, and pairs are counted whose every
ratio is such a fraction. 8-bit codes are not seen this way: every ratio is near a fraction of integers up to 255.
"""

from dataclasses import dataclass
from fractions import Fraction

import torch

from quantharm.forensics.detection.weights import Matrix

LARGEST_CODE = {2: 2, 3: 4, 4: 15}  # bits: largest |code - zero|; 4 bits bind every pair that fewer bits bind
SAME_PAIRS = 0.9  # share of the pairs bound by 4 bits that fewer bits have to bind
BOUND_SHARE = 0.97  # of a pair's rows that must match for one group
COLUMNS = 32  # of each place in a matrix
LEAST_ROWS = 24  # in which neither is zero
LEAST_PAIRS = 8
CHANCE_SHARE = 0.8  # of rows; where chance explains more, nothing can be told
GROUP_SIZES = (16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class UnorderedGroups:
    """Groups of columns in any order, seen in pairs of columns that share scales."""

    bits: int
    group_size: int  # the nearest usual one, from the share of pairs that are bound
    bound_share: float  # of all pairs
    matching_share: float  # of the rows of an unbound pair, by chance


def fractions_to(largest: int) -> torch.Tensor:
    """All fractions from 0 to 1 of two integers up to `largest`, ascending, float32."""
    values = {Fraction(a, b) for b in range(1, largest + 1) for a in range(1, b + 1)}
    return torch.tensor(sorted(float(v) for v in values))


def matching_rows(columns: torch.Tensor, largest: int, tolerance: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows in which a pair's ratio is such a fraction, rows in which it could be) of all pairs; columns: [n, rows].

    A pair with one constant ratio, as of a copied or rescaled column, is not counted.
    """
    first, second = torch.triu_indices(len(columns), len(columns), 1)
    a, b = columns[first].abs(), columns[second].abs()
    small, large = torch.minimum(a, b), torch.maximum(a, b)
    valid = small > 0
    ratio = torch.where(valid, small / large.clamp_min(1e-30), 1.0)
    levels = fractions_to(largest)
    upper = torch.bucketize(ratio, levels).clamp(1, len(levels) - 1)
    distance = torch.minimum((levels[upper] - ratio).abs(), (ratio - levels[upper - 1]).abs())
    matching = (distance <= tolerance * ratio) & valid
    signed = torch.where(valid, columns[first] / columns[second].where(valid, torch.ones(())), torch.nan)
    middle = signed.nanmedian(1, keepdim=True).values
    constant = ((signed - middle).abs() <= 2 * tolerance * middle.abs()).sum(1) > valid.sum(1) / 2
    rows = valid.sum(1)
    return matching.sum(1).masked_fill(constant, 0), rows


def bound_pairs(matrix: Matrix, largest: int) -> tuple[int, int, float] | None:
    """(bound pairs, pairs that can be judged, mean share of matching rows in the unbound); None where none can."""
    tolerance = max(torch.finfo(matrix.dtype).eps, 2.0**-11)  # each weight was rounded by half of it
    counted = [matching_rows(slab[:COLUMNS], largest, tolerance) for slab in matrix.column_slabs]
    matching, rows = (torch.cat(parts) for parts in zip(*counted, strict=True))
    judged = rows >= LEAST_ROWS
    if not judged.any():
        return None
    share = matching[judged] / rows[judged]
    bound = share >= BOUND_SHARE
    return int(bound.sum()), len(share), float(share[~bound].mean()) if not bool(bound.all()) else 0.0


def bound_by(matrix: Matrix, largest: int) -> int:
    """Number of pairs of columns that codes up to `largest` bind."""
    pairs = bound_pairs(matrix, largest)
    return pairs[0] if pairs else 0


def find_unordered(matrix: Matrix) -> UnorderedGroups | None:
    """Groups of columns in any order; None where fewer than LEAST_PAIRS pairs are bound, or chance would bind them."""
    widest = bound_pairs(matrix, max(LARGEST_CODE.values()))
    if widest is None or widest[0] < LEAST_PAIRS or widest[2] > CHANCE_SHARE:
        return None
    pairs, judged, by_chance = widest
    bits = next(b for b, largest in LARGEST_CODE.items() if bound_by(matrix, largest) >= SAME_PAIRS * pairs)
    share = pairs / judged
    possible = [size for size in GROUP_SIZES if size <= matrix.columns]
    size = min(possible, key=lambda g: abs(share * matrix.columns / g - 1))
    return UnorderedGroups(bits, size, share, by_chance)
