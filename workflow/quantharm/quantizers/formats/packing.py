"""Unpacking of small integers and floating-point numbers from the words that hold several."""

import torch

FP4_LEVELS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # magnitudes of E2M1; the sign is the fourth bit


def looked_up(table: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Each byte's row of a table [at most 256, k]: [..., n] of a byte each → [..., n · k] in the table's dtype.

    By numpy, which takes bytes as indices: PyTorch would have them as int32, which take longer than all the rest.
    """
    rows = table.contiguous().numpy()
    whole = rows.view(f"u{rows.shape[1] * rows.itemsize}")[:, 0]
    return torch.from_numpy(whole[codes.contiguous().view(torch.uint8).numpy()].view(rows.dtype))


def unpack_words(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """[n, words] int32 (or int64 of 32 bits) → [n, count] integers of `bits` bits, uint8, from the low bits up.

    Of 3, 5, 6 and 7 bits some straddle two words; eight of them fill as many bytes as they have bits. Raises ValueError
    where the words hold fewer.
    """
    rows, words = packed.shape
    if bits > 8 or 32 * words < count * bits:
        raise ValueError(f"{words} words do not hold {count} integers of {bits} bits, at most 8 each")
    stored = packed.to(torch.int32).reshape(-1).contiguous().view(torch.uint8).view(rows, 4 * words)
    mask = 2**bits - 1
    if 8 % bits == 0:
        of_byte = (torch.arange(256).unsqueeze(1) >> torch.arange(0, 8, bits)) & mask
        return looked_up(of_byte.to(torch.uint8), stored)[:, :count]
    wide = torch.int32 if bits < 4 else torch.int64
    eights = torch.nn.functional.pad(stored, (0, -stored.shape[1] % bits)).unflatten(1, (-1, bits)).to(wide)
    eights = sum((eights[..., i] << (8 * i) for i in range(1, bits)), start=eights[..., 0])
    shifts = torch.arange(0, 8 * bits, bits, dtype=wide)
    return ((eights.unsqueeze(-1) >> shifts) & mask).to(torch.uint8).flatten(1)[:, :count]


def two_of_a_byte(levels: torch.Tensor) -> torch.Tensor:
    """A table [256, 2] for looked_up, of 16 levels: that of a byte's low half, then that of its high half."""
    return torch.stack([levels.repeat(16), levels.repeat_interleave(16)], dim=1)


def unpack_fp4(packed: torch.Tensor) -> torch.Tensor:
    """[..., bytes] uint8 → [..., 2 · bytes] float32, E2M1 numbers; the low half of a byte comes first."""
    signed = torch.tensor([*FP4_LEVELS, *(-level for level in FP4_LEVELS)])
    return looked_up(two_of_a_byte(signed), packed)


def to_float32(stored: torch.Tensor) -> torch.Tensor:
    """A copy in float32; numbers of 8 bits by a table, in a fifth of the time."""
    if stored.dtype.itemsize > 1 or not stored.ndim:
        return stored.to(torch.float32, copy=True)
    table = torch.arange(256, dtype=torch.uint8).view(stored.dtype).float().unsqueeze(1)
    return looked_up(table, stored)


def exponent_scale(codes: torch.Tensor) -> torch.Tensor:
    """E8M0 to float32: a byte is the exponent of a power of two, 127 is 1."""
    return (codes.view(torch.uint8).float() - 127).exp2()


def expand(scales: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Scales of a matrix, row, group or block → [rows, columns]: each covers an equal part; the last may be cut."""
    scales = scales.reshape(scales.shape[0], -1) if scales.ndim else scales.reshape(1, 1)
    tall, wide = -(-rows // scales.shape[0]), -(-columns // scales.shape[1])
    return scales.repeat_interleave(tall, 0)[:rows].repeat_interleave(wide, 1)[:, :columns]


def beside(matrix: torch.Tensor, parts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(a view of the matrix, parts): shapes that broadcast; parts: as expand() takes them."""
    rows, columns = matrix.shape
    parts = parts.reshape(parts.shape[0], -1) if parts.ndim else parts.reshape(1, 1)
    tall, wide = len(parts), parts.shape[1]
    if rows % tall or columns % wide:
        return matrix, expand(parts, rows, columns)
    return matrix.view(tall, rows // tall, wide, columns // wide), parts[:, None, :, None]


def times(matrix: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The matrix, multiplied in place by scales as expand() takes them."""
    view, parts = beside(matrix, scales)
    view.mul_(parts)
    return matrix


def less(matrix: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    """The matrix less zero points as expand() takes them, in place."""
    view, parts = beside(matrix, zeros)
    view.sub_(parts)
    return matrix
