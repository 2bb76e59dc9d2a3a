"""Unpacking of small integers and floating-point numbers from the words that hold several."""

import torch

FP4_LEVELS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # magnitudes of E2M1; the sign is the fourth bit


def unpack_words(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """[n, words] int32 (or int64 of 32 bits) → [n, count] integers of `bits` bits, int32, from the low bits up.

    Of 3, 5, 6 and 7 bits some straddle two words.
    """
    if 32 % bits == 0:
        shifts = torch.arange(0, 32, bits, dtype=torch.int32)
        return ((packed.to(torch.int32).unsqueeze(-1) >> shifts) & (2**bits - 1)).flatten(1)[:, :count]
    places = torch.arange(count) * bits
    word, shift = places // 32, places % 32
    words = torch.nn.functional.pad(packed.to(torch.int64) & 0xFFFFFFFF, (0, 1))
    return (((words[:, word] | (words[:, word + 1] << 32)) >> shift) & (2**bits - 1)).int()


def unpack_fp4(packed: torch.Tensor) -> torch.Tensor:
    """[..., bytes] uint8 → [..., 2 · bytes] float32, E2M1 numbers; the low half of a byte comes first."""
    signed = torch.tensor([*FP4_LEVELS, *(-level for level in FP4_LEVELS)])
    packed = packed.view(torch.uint8)
    return signed[torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2).long()]


def exponent_scale(codes: torch.Tensor) -> torch.Tensor:
    """E8M0 to float32: a byte is the exponent of a power of two, 127 is 1."""
    return (codes.view(torch.uint8).float() - 127).exp2()


def expand(scales: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Scales of a matrix, row, group or block → [rows, columns]: each covers an equal part; the last may be cut."""
    scales = scales.reshape(scales.shape[0], -1) if scales.ndim else scales.reshape(1, 1)
    tall, wide = -(-rows // scales.shape[0]), -(-columns // scales.shape[1])
    return scales.repeat_interleave(tall, 0)[:rows].repeat_interleave(wide, 1)[:, :columns]
