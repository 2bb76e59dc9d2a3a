"""The blocks of ggml's types (GGUF), by arithmetic of our own: [blocks, bytes] uint8 → [blocks, weights] float32.

A block of 32 weights has a float16 scale d, and some a minimum m. K-quants are super-blocks of 256: groups of 16 or 32,
whose scales (and minimums) are themselves integers of 4 to 8 bits in units of the super-block's d (and dmin).

    Q4_0, Q5_0, Q8_0    d · (code - 2^(bits-1))         4.5, 5.5, 8.5 bits a weight
    Q4_1, Q5_1          d · code + m                    5, 6
    Q2_K, Q4_K, Q5_K    d · s · code - dmin · t         2.625, 4.5, 5.5
    Q3_K, Q6_K          d · s · (code - 2^(bits-1))     3.4375, 6.5625
    IQ4_NL, IQ4_XS      d (· s) · level of the code     4.5, 4.25

Source of the layouts: ggml-common.h and ggml-quants.c of llama.cpp.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from quantharm.quantizers.formats.packing import looked_up

LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)  # of IQ4
OF_CODE = torch.tensor(LEVELS, dtype=torch.int8).unsqueeze(1)


def half(blocks: torch.Tensor, start: int) -> torch.Tensor:
    """A float16 number of each block: [blocks, 1] float32."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()


def bits_of(packed: torch.Tensor, shifts: tuple[int, ...], mask: int) -> torch.Tensor:
    """[..., bytes] → [..., shifts, bytes] uint8: the same bits of all bytes side by side, in ggml's order of codes."""
    return (packed.unsqueeze(-2) >> torch.tensor(shifts, dtype=torch.uint8).unsqueeze(-1)) & mask


def around(codes: torch.Tensor, middle: int) -> torch.Tensor:
    """Codes below 128, less the middle one; int8."""
    return codes.view(torch.int8) - middle


def nibbles(packed: torch.Tensor) -> torch.Tensor:
    """[blocks, 16] → [blocks, 32]: all low halves, then all high halves."""
    return bits_of(packed, (0, 4), 15).flatten(-2)


def fifth_bits(packed: torch.Tensor) -> torch.Tensor:
    """[blocks, 4] → [blocks, 32], 0 or 16: one bit a weight, of a little-endian word."""
    return ((packed.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8)) & 1).flatten(-2) << 4


def q4_0(b: torch.Tensor) -> torch.Tensor:
    return half(b, 0) * around(nibbles(b[:, 2:]), 8)


def q4_1(b: torch.Tensor) -> torch.Tensor:
    return half(b, 0) * nibbles(b[:, 4:]) + half(b, 2)


def q5_0(b: torch.Tensor) -> torch.Tensor:
    return half(b, 0) * around(nibbles(b[:, 6:]) | fifth_bits(b[:, 2:6]), 16)


def q5_1(b: torch.Tensor) -> torch.Tensor:
    return half(b, 0) * (nibbles(b[:, 8:]) | fifth_bits(b[:, 4:8])) + half(b, 2)


def q8_0(b: torch.Tensor) -> torch.Tensor:
    return half(b, 0) * b[:, 2:].contiguous().view(torch.int8)


def grouped(scale: torch.Tensor, codes: torch.Tensor, minimum: torch.Tensor | None = None) -> torch.Tensor:
    """scale × code - minimum; scale, minimum: [blocks, groups]; codes: [blocks, 256]."""
    parts = codes.unflatten(-1, (scale.shape[1], -1)) * scale.unsqueeze(-1)
    return (parts if minimum is None else parts - minimum.unsqueeze(-1)).flatten(-2)


def q2_k(b: torch.Tensor) -> torch.Tensor:
    scales, packed = b[:, :16], b[:, 16:80]
    codes = bits_of(packed.unflatten(-1, (2, 32)), (0, 2, 4, 6), 3).flatten(1)
    return grouped(half(b, 80) * (scales & 15), codes, half(b, 82) * (scales >> 4))


def q3_k(b: torch.Tensor) -> torch.Tensor:
    high, packed, scales = b[:, :32], b[:, 32:96], b[:, 96:108]
    low = torch.cat([scales[:, :8] & 15, scales[:, :8] >> 4], 1)
    top = bits_of(scales[:, 8:], (0, 2, 4, 6), 3).flatten(1)
    codes = bits_of(packed.unflatten(-1, (2, 32)), (0, 2, 4, 6), 3).flatten(1)
    codes = around(codes | (bits_of(high, tuple(range(8)), 1).flatten(1) << 2), 4)
    return grouped(half(b, 108) * around(low | (top << 4), 32), codes)


def scales_and_minimums(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """12 bytes: eight scales and eight minimums of six bits; the last four of each have their upper bits elsewhere."""
    first, second, third = packed[:, :4].int(), packed[:, 4:8].int(), packed[:, 8:].int()
    scales = torch.cat([first & 63, (third & 15) | ((first >> 6) << 4)], 1)
    return scales, torch.cat([second & 63, (third >> 4) | ((second >> 6) << 4)], 1)


def q4_k(b: torch.Tensor) -> torch.Tensor:
    scales, minimums = scales_and_minimums(b[:, 4:16])
    codes = bits_of(b[:, 16:].unflatten(-1, (4, 32)), (0, 4), 15).flatten(1)
    return grouped(half(b, 0) * scales, codes, half(b, 2) * minimums)


def q5_k(b: torch.Tensor) -> torch.Tensor:
    scales, minimums = scales_and_minimums(b[:, 4:16])
    codes = bits_of(b[:, 48:].unflatten(-1, (4, 32)), (0, 4), 15).flatten(1)
    codes = codes | (bits_of(b[:, 16:48], tuple(range(8)), 1).flatten(1) << 4)
    return grouped(half(b, 0) * scales, codes, half(b, 2) * minimums)


def q6_k(b: torch.Tensor) -> torch.Tensor:
    low = bits_of(b[:, :128].unflatten(-1, (2, 64)), (0, 4), 15).flatten(1)
    high = bits_of(b[:, 128:192].unflatten(-1, (2, 32)), (0, 2, 4, 6), 3).flatten(1)
    return grouped(half(b, 208) * b[:, 192:208].contiguous().view(torch.int8), around(low | (high << 4), 32))


def iq4_nl(b: torch.Tensor) -> torch.Tensor:
    return half(b, 0) * looked_up(OF_CODE, nibbles(b[:, 2:]))


def iq4_xs(b: torch.Tensor) -> torch.Tensor:
    high = b[:, 2].int() | (b[:, 3].int() << 8)
    low = torch.stack([b[:, 4:8] & 15, b[:, 4:8] >> 4], -1).flatten(1)
    scales = (low | (((high.unsqueeze(-1) >> (2 * torch.arange(8))) & 3) << 4)) - 32
    codes = nibbles(b[:, 8:].unflatten(-1, (8, 16))).flatten(1)
    return grouped(half(b, 0) * scales, looked_up(OF_CODE, codes))


class BlockType(NamedTuple):
    """A type of tensor in a GGUF file."""

    weights: int  # in a block
    bytes: int  # of a block
    dequantize: Callable[[torch.Tensor], torch.Tensor]


TYPES: dict[str, BlockType] = {
    "Q4_0": BlockType(32, 18, q4_0),
    "Q4_1": BlockType(32, 20, q4_1),
    "Q5_0": BlockType(32, 22, q5_0),
    "Q5_1": BlockType(32, 24, q5_1),
    "Q8_0": BlockType(32, 34, q8_0),
    "Q2_K": BlockType(256, 84, q2_k),
    "Q3_K": BlockType(256, 110, q3_k),
    "Q4_K": BlockType(256, 144, q4_k),
    "Q5_K": BlockType(256, 176, q5_k),
    "Q6_K": BlockType(256, 210, q6_k),
    "IQ4_NL": BlockType(32, 18, iq4_nl),
    "IQ4_XS": BlockType(256, 136, iq4_xs),
}
