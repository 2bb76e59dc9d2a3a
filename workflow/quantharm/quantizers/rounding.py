"""The grids that quantizers round weights to, by arithmetic of our own: codes, and the width of a step.

    int8      LLM.int8: by row, 255 levels, scale max |w| / 127
    nf4, fp4  QLoRA: blocks of 64 weights of the flattened matrix, 16 (15) levels times max |w|
    int4-G    4-bit integers in groups of G input channels of a row, between the group's least and largest weight

On a CPU bitsandbytes scales int8 in 16 bits, which puts 4 % of the built-in model's weights, those near the middle of
two levels, on the other level; nf4 agrees but for blocks whose largest weight is below 1e-12. For AWQ, int4 is an
approximation: its scales move salient channels first, and depend on the calibration text.
"""

import torch

BLOCK = 64  # weights that share a scale in nf4 and fp4
INT8_LEVELS = 127
INT4_LEVELS = 15


def levels_of(grid: str) -> torch.Tensor:
    """The levels of a 4-bit float grid, ascending, each once, between -1 and 1; from the library's own table."""
    import bitsandbytes.functional

    return bitsandbytes.functional.get_4bit_type(grid, device="cpu").unique()  # unique sorts; fp4 has 0 twice


def blocks_of(weight: torch.Tensor, grid: str) -> torch.Tensor:
    """The weights that share a scale as rows: [rows, columns] → [blocks, size] float32, the last filled with zeros."""
    size = {"int8": weight.shape[1], "nf4": BLOCK, "fp4": BLOCK}.get(grid) or int(grid.removeprefix("int4-"))
    flat = weight.float().flatten()
    return torch.nn.functional.pad(flat, (0, -flat.numel() % size)).reshape(-1, size)


def from_blocks(blocks: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The inverse of blocks_of."""
    return blocks.flatten()[: shape.numel()].reshape(shape)


def codes(weight: torch.Tensor, grid: str) -> torch.Tensor:
    """The code of each weight, rounded to the nearest level: [rows, columns] → [rows, columns] int16."""
    blocks = blocks_of(weight, grid)
    if grid.startswith("int4"):
        low, high = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
        scale = ((high - low) / INT4_LEVELS).clamp_min(1e-12)
        zero = (-low / scale).round()
        nearest = ((blocks / scale).round() + zero).clamp(0, INT4_LEVELS) - zero
    else:
        scale = blocks.abs().amax(1, keepdim=True).clamp_min(1e-12)
        if grid == "int8":
            nearest = (blocks * (INT8_LEVELS / scale)).round()
        else:
            levels = levels_of(grid)
            nearest = torch.bucketize(blocks * (1 / scale), (levels[1:] + levels[:-1]) / 2)
    return from_blocks(nearest, weight.shape).to(torch.int16)


def half_steps(weight: torch.Tensor, grid: str) -> torch.Tensor:
    """Half the mean distance of neighbouring levels in each weight's block: [rows, columns] float32.

    int8: max |w| / 254 of the row; nf4: max |w| / 15 of the block; int4: (max - min) / 30 of the group.
    """
    blocks = blocks_of(weight, grid)
    if grid.startswith("int4"):
        halves = (blocks.amax(1, keepdim=True) - blocks.amin(1, keepdim=True)) / (2 * INT4_LEVELS)
    else:
        steps = 2 * INT8_LEVELS if grid == "int8" else len(levels_of(grid)) - 1
        halves = blocks.abs().amax(1, keepdim=True) / steps
    return from_blocks(halves.expand_as(blocks), weight.shape)
