"""The fit of groups of weights to the levels of a quantizer, beside that of weights without such a trace.

A group that was quantized and dequantized takes few values: integers times a scale (after AWQ, GPTQ, LLM.int8 or plain
rounding), the 16 levels of NF4 or of one of the FP4s times the block's largest magnitude, or 8-bit floats. So
quantizing it again changes it only by the rounding of 16-bit storage, and the idempotence ratio
r = ‖W - deq(Q(W))‖ / ‖W‖ is far below that of a matrix of the same spread. Scales are not known: those that the
group's extremes allow are tried, and the best one counts.

The reference is the same group with its grid destroyed: every weight moved by uniform noise one step wide and rounded
to the storage format again. Trying many scales gains as much there by chance.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

# Levels of QLoRA's NF4 (Dettmers et al. 2023, appendix E) and of bitsandbytes' FP4, as shares of a block's absmax.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
FP4_MAGNITUDES = (0.0, 0.0625 / 12, 2 / 12, 3 / 12, 4 / 12, 6 / 12, 8 / 12, 12 / 12)
E2M1_MAGNITUDES = (0.0, 0.5 / 6, 1 / 6, 1.5 / 6, 2 / 6, 3 / 6, 4 / 6, 6 / 6)  # of NVFP4 and MXFP4 (OCP MX)


def both_signs(magnitudes: tuple[float, ...]) -> tuple[float, ...]:
    """The magnitudes and their negatives, ascending."""
    return tuple(sorted({sign * level for level in magnitudes for sign in (-1, 1)}))


CODEBOOKS = {"NF4": NF4, "FP4": both_signs(FP4_MAGNITUDES), "E2M1": both_signs(E2M1_MAGNITUDES)}
INTEGER_STEPS = {2: (2, 3), 3: (4, 5, 6, 7), 4: (8, 9, 10, 11, 12, 13, 14, 15)}  # steps between a group's extremes
STEPS_FROM_MINIMUM = tuple(range(16, 32))  # 5 bits (Q5_K, Q5_0): between the extremes, which are levels
STEPS_TO_ABSMAX = tuple(range(16, 33))  # 6 bits around zero (Q6_K): from 0 to the largest magnitude, which is a level
INT8_STEPS = tuple(127 + k / 8 for k in range(-5, 14))  # steps from 0 to the largest magnitude: 127 or 128, if rounded
UINT8_STEPS = tuple(255 + k / 8 for k in range(-5, 6))
CODEBOOK_SCALES = (1.0, 0.985, 1.015)  # of absmax, which noise moves
BELOW_THE_TOP = 1.5  # with a power of two as scale, absmax may lie on E2M1's second largest level, 4
NEAR_ZERO = 0.01  # levels of FP4 around 0
EPSILON = 1e-30
ELEMENTS_AT_ONCE = 2**18  # weights × scales


class Fit(NamedTuple):
    """Errors of fitting a grid to each group, at its best scale: [groups]; at several scales: [scales, groups]."""

    error: torch.Tensor  # mean squared distance from the nearest level, in steps, of the weights that are not at zero
    squared: torch.Tensor  # Σ (w - deq(Q(w)))² of all weights
    step: torch.Tensor  # distance of neighbouring levels, in units of the weights; of floats, the scale
    count: torch.Tensor  # weights that are not at zero


@dataclass(frozen=True)
class Format:
    """A format that weights may have been stored in: integers, a codebook of 16 levels, or 8-bit floats."""

    name: str  # integer, NF4, FP4 (bitsandbytes'), E2M1 (NVFP4's and MXFP4's) or E4M3 (FP8)
    bits: int

    @property
    def label(self) -> str:
        return f"{self.bits}-bit integer" if self.name == "integer" else LABELS.get(self.name, self.name)


LABELS = {"E2M1": "FP4 (E2M1)", "E4M3": "FP8 (E4M3)"}
FORMATS = (
    *(Format("integer", bits) for bits in (2, 3, 4, 5, 6, 8)),
    Format("NF4", 4),
    Format("FP4", 4),
    Format("E2M1", 4),
    Format("E4M3", 8),
)


def integer_candidates(groups: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(steps, offsets), each [scales, groups, 1]: grids with a level at 0 (symmetric or not) or at the minimum."""
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    absmax = torch.maximum(high, -low)
    if bits == 6:
        steps = absmax / column(STEPS_TO_ABSMAX)
        return steps, torch.zeros_like(steps)
    if bits == 5:
        steps = (high - low) / column(STEPS_FROM_MINIMUM)
        return steps, low.expand_as(steps)
    if bits == 8:
        steps = torch.cat([absmax / column(INT8_STEPS), (high - low) / column(UINT8_STEPS)])
        return steps, torch.zeros_like(steps)
    steps = ((high - low) / column(INTEGER_STEPS[bits])).repeat_interleave(2, 0)
    return steps, torch.stack([torch.zeros_like(low), low]).repeat(len(INTEGER_STEPS[bits]), 1, 1)


def column(values: tuple[float, ...]) -> torch.Tensor:
    """The values as [n, 1, 1], to be tried on all groups at once."""
    return torch.tensor(values)[:, None, None]


def fit_integers(groups: torch.Tensor, bits: int) -> Fit:
    """The best grid of integers for each group; groups: [groups, n] float32."""
    candidates = (values.split(scales_at_once(groups)) for values in integer_candidates(groups, bits))
    fits = []
    for step, offset in zip(*candidates, strict=True):
        step = step.clamp_min(EPSILON)
        away = groups.abs() >= step / 2
        phase = (groups - offset).div_(step)
        fits.append(fit_of(phase.sub_(phase.round()).square_(), away, step[..., 0]))
    return best_of(fits)


def fit_codebook(groups: torch.Tensor, name: str) -> Fit:
    """The best fit of a codebook scaled by the group's largest magnitude; groups: [groups, n] float32."""
    levels = torch.tensor(CODEBOOKS[name])
    between = (levels[1:] + levels[:-1]) / 2
    mean_step = 2 / (len(levels) - 1)
    shares_of_absmax = (*CODEBOOK_SCALES, BELOW_THE_TOP) if name == "E2M1" else CODEBOOK_SCALES
    scales = groups.abs().amax(1, keepdim=True).clamp_min(EPSILON) * column(shares_of_absmax)
    fits = []
    for scale in scales.split(scales_at_once(groups)):
        shares = groups / scale
        nearest = levels[torch.bucketize(shares, between)]
        squares = shares.sub_(nearest).div_(mean_step).square_()
        fits.append(fit_of(squares, nearest.abs() > NEAR_ZERO, mean_step * scale[..., 0]))
    return best_of(fits)


def scales_at_once(groups: torch.Tensor) -> int:
    """Scales to try in one call: enough to be worth it, few enough for a core's cache."""
    return max(1, ELEMENTS_AT_ONCE // groups.numel())


def fit_of(squares: torch.Tensor, away: torch.Tensor, step: torch.Tensor) -> Fit:
    """squares: [scales, groups, n] squared distances in steps; away: weights not at level 0; step: [scales, groups].

    Weights at level 0 are not counted: every weight that is small beside its group's extremes lies there, as in a
    pruned or dead neuron of a matrix that nobody quantized.
    """
    away = away.to(squares.dtype)
    count = away.sum(-1)
    total = squares.sum(-1) * step.square()
    error = squares.mul_(away).sum(-1) / count.clamp_min(1)
    return Fit(error, total, step, count)


def best_of(fits: list[Fit]) -> Fit:
    """Each group's fit at the scale of least error, the first of equal ones."""
    whole = Fit(*map(torch.cat, zip(*fits, strict=True)))
    chosen = whole.error.argmin(0, keepdim=True)
    return Fit(*(values.gather(0, chosen)[0] for values in whole))


def fit_floats(groups: torch.Tensor) -> Fit:
    """The best fit of E4M3, eight levels an octave, at some scale; groups: [groups, n] float32.

    The group's largest magnitude is a level, so one of eight scales is right up to a power of two. The levels below the
    smallest octave, 2^-14 of the largest, are treated as one.
    """
    absmax = groups.abs().amax(1, keepdim=True).clamp_min(EPSILON)
    fits = []
    for scale in (absmax / (1 + column(tuple(k / 8 for k in range(8))))).split(scales_at_once(groups)):
        step = steps_of_floats(groups, scale)
        squares = (groups / step).sub_((groups / step).round()).square_()
        away = (groups != 0).expand_as(squares)
        count = away.sum(-1).float()
        fits.append(Fit(squares.sum(-1) / count.clamp_min(1), (squares * step.square()).sum(-1), scale[..., 0], count))
    return best_of(fits)


def steps_of_floats(groups: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Distance of E4M3's levels around each weight; scale: [..., groups, 1]."""
    _, exponent = torch.frexp(groups / scale)
    return scale * (exponent - 4).float().exp2()  # an eighth of the octave's start


def fit(groups: torch.Tensor, kind: Format) -> Fit:
    """The best fit of a format to each group; groups: [groups, n] float32."""
    if kind.name == "integer":
        return fit_integers(groups, kind.bits)
    return fit_floats(groups) if kind.name == "E4M3" else fit_codebook(groups, kind.name)


def steps_of(groups: torch.Tensor, kind: Format, fitted: Fit) -> torch.Tensor:
    """Distance of neighbouring levels: [groups, 1]; of floats [groups, n]."""
    step = fitted.step.unsqueeze(1)
    return steps_of_floats(groups, step) if kind.name == "E4M3" else step


def without_grid(groups: torch.Tensor, step: torch.Tensor, dtype: torch.dtype, random: torch.Generator) -> torch.Tensor:
    """The groups moved by uniform noise of one step and rounded to dtype: the same spread without a grid of that step.

    step: [groups, 1] or [groups, n].
    """
    noise = torch.rand(groups.shape, generator=random).sub_(0.5).mul_(step)
    return noise.add_(groups).to(dtype).float()
