"""The rounding of a layer's inputs before they are multiplied, as kernels do in W8A8, FP8 and NVFP4.

Each function returns the rounded inputs, computed in the inputs' dtype as libraries do: a scale that is itself rounded
to bfloat16 puts every thirtieth 8-bit float on its neighbour.
"""

import torch

from quantharm.quantizers.formats.packing import FP4_LEVELS

FP8_LARGEST = 448.0  # of float8_e4m3fn
FP4_LARGEST = 6.0


def llm_int8(inputs: torch.Tensor, threshold: float) -> torch.Tensor:
    """LLM.int8 (Dettmers et al. 2022): 127 steps a row, except columns that hold an outlier."""
    outliers = (inputs.abs() >= threshold).any(0) if threshold > 0 else torch.zeros_like(inputs[0], dtype=torch.bool)
    rest = inputs.masked_fill(outliers, 0.0)
    scale = rest.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
    return torch.where(outliers, inputs, (rest / scale).round() * scale)


def integers(groups: torch.Tensor, bits: int, symmetric: bool) -> torch.Tensor:
    """Rounds to 2^bits integers a group, around 0 or from its smallest to its largest number; groups: [..., size]."""
    low = groups.amin(-1, keepdim=True).clamp_max(0.0)
    high = groups.amax(-1, keepdim=True).clamp_min(0.0)
    least, steps = -(2 ** (bits - 1)), 2**bits - 1
    width = 2 * torch.maximum(-low, high) if symmetric else high - low
    scale = (width / steps).clamp_min(1e-12)
    zero = torch.zeros_like(scale) if symmetric else (least - low / scale).round()
    return ((groups / scale + zero).clamp(least, least + steps).round() - zero) * scale


def fp8(inputs: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Rounds to float8_e4m3fn in units of `scale` (broadcast), saturating."""
    return (inputs / scale).clamp(-FP8_LARGEST, FP8_LARGEST).to(torch.float8_e4m3fn).to(inputs.dtype) * scale


def largest(groups: torch.Tensor) -> torch.Tensor:
    """The largest magnitude of each group, [..., size] → [..., 1]; never 0."""
    return groups.abs().amax(-1, keepdim=True).clamp_min(1e-12)


def fp8_dynamic(groups: torch.Tensor) -> torch.Tensor:
    """Rounds to float8_e4m3fn, each group's largest number at its largest level; groups: [..., size]."""
    return fp8(groups, largest(groups) / FP8_LARGEST)


def nearest_fp4(values: torch.Tensor) -> torch.Tensor:
    """Rounds to the nearest E2M1 number, to the even code where two are as near, saturating."""
    levels = torch.tensor(FP4_LEVELS, dtype=values.dtype)
    magnitude = values.abs().clamp_max(FP4_LARGEST)
    upper = torch.bucketize(magnitude, levels)  # index of the first level that is not below
    lower = (upper - 1).clamp_min(0)
    up, down = levels[upper] - magnitude, magnitude - levels[lower]
    chosen = torch.where((up < down) | ((up == down) & (upper % 2 == 0)), upper, lower)
    return levels[chosen].copysign(values)


def nvfp4(groups: torch.Tensor, global_scale: float) -> torch.Tensor:
    """Rounds to E2M1 with a float8 scale a group, itself in units of 1 / global_scale; groups: [..., 16]."""
    scale = (
        ((largest(groups) / FP4_LARGEST).float() * global_scale).clamp_max(FP8_LARGEST).to(torch.float8_e4m3fn).float()
    )
    scale = scale.clamp_min(2**-9) / global_scale
    return nearest_fp4(groups / scale) * scale


def power_of_two_scale(groups: torch.Tensor, bits: int) -> torch.Tensor:
    """The scale of OCP MX: the largest number's power of two, less that of the format's largest level.

    A number within the last quarter below a power of two counts as that power, as in compressed-tensors. groups: [...,
    size].
    """
    largest_exponent = {4: 2, 8: 8}[bits]
    mantissa, exponent = torch.frexp(largest(groups).float())  # mantissa in [½, 1)
    rounded_up = 2 * mantissa - 1 >= 0.75
    return (exponent - 1 + rounded_up.int() - largest_exponent).float().exp2().to(groups.dtype)


def mx(groups: torch.Tensor, bits: int) -> torch.Tensor:
    """Rounds to MXFP4 or MXFP8; groups: [..., 32]."""
    scale = power_of_two_scale(groups, bits)
    return nearest_fp4(groups / scale) * scale if bits == 4 else fp8(groups, scale)
