"""How kernels round a layer's inputs before they multiply: the other half of W8A8, FP8 and NVFP4, in float32.

Each takes the inputs [n, columns] float32 and returns those that are multiplied.
"""

import torch

FP8_LARGEST = 448.0  # of float8_e4m3fn
FP4_LEVELS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # magnitudes of E2M1


def llm_int8(inputs: torch.Tensor, threshold: float) -> torch.Tensor:
    """LLM.int8 (Dettmers et al. 2022): 127 steps a row, except columns that hold an outlier."""
    outliers = (inputs.abs() >= threshold).any(0) if threshold > 0 else torch.zeros_like(inputs[0], dtype=torch.bool)
    rest = inputs.masked_fill(outliers, 0.0)
    scale = rest.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
    return torch.where(outliers, inputs, (rest / scale).round() * scale)


def fp8(inputs: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """To float8_e4m3fn in steps of `scale` (broadcast), saturating."""
    steps = (inputs / scale).clamp(-FP8_LARGEST, FP8_LARGEST)
    return steps.to(torch.float8_e4m3fn).float() * scale


def nearest_fp4(values: torch.Tensor) -> torch.Tensor:
    """The nearest E2M1 number, the even code where two are as near, saturating at 6."""
    levels = torch.tensor(FP4_LEVELS)
    magnitude = values.abs().clamp_max(6.0)
    upper = torch.bucketize(magnitude, levels).clamp_max(7)  # the first level that is not below
    lower = (upper - 1).clamp_min(0)
    up, down = levels[upper] - magnitude, magnitude - levels[lower]
    chosen = torch.where((up < down) | ((up == down) & (upper % 2 == 0)), upper, lower)
    return levels[chosen].copysign(values)
