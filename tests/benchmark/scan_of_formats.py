"""What the scan for dequantized weights sees of the formats that people ship: 21 matrices of the built-in model.

    PYTHONPATH=workflow python tests/benchmark/scan_of_formats.py

Each format is applied to the weights (GGUF's legacy types by the package `gguf`, the others by arithmetic here), stored
in bfloat16 and scanned. The scan knows integers in groups and bitsandbytes' codebooks; of other lattices it can only
say that a row has few distinct values. Its false alarms are those of integrity_detection.md: the scan is the same.
Writes scan_of_formats.csv beside this file.
"""

import csv
from collections.abc import Callable
from pathlib import Path

import gguf
import torch
from integrity_detection import chosen, load_reference, rates

from quantharm.quantizers.formats import activations

SUPER_BLOCK = 256
COLUMNS = (
    "format",
    "matrices",
    "detected",
    "ratio_lowest",
    "ratio_median",
    "ratio_highest",
    "distinct_lowest",
    "seen_as",
)


def legacy(name: str) -> Callable:
    kind = gguf.GGMLQuantizationType[name]
    return lambda w: torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(w.numpy(), kind), kind)).reshape(
        w.shape
    )


def around_zero(bits: int, size: int) -> Callable:
    """Q3_K and Q6_K: codes times a scale a group, which is itself an integer of 6 or 8 bits times the super-block's."""

    def apply(weight: torch.Tensor) -> torch.Tensor:
        groups = weight.reshape(-1, SUPER_BLOCK // size, size)
        scale = groups.abs().amax(-1) / 2 ** (bits - 1)
        step = scale.amax(-1, keepdim=True) / (31 if bits == 3 else 127)
        scale = ((scale / step).round() * step).unsqueeze(-1).clamp_min(1e-12)
        least = -(2 ** (bits - 1))
        return ((groups / scale).round().clamp(least, -least - 1) * scale).reshape(weight.shape)

    return apply


def from_a_minimum(bits: int, size: int, scale_bits: int) -> Callable:
    """Q2_K, Q4_K and Q5_K: codes times a scale a group, less a minimum, both integers in units of the super-block's."""

    def apply(weight: torch.Tensor) -> torch.Tensor:
        groups = weight.reshape(-1, SUPER_BLOCK // size, size)
        minimum = -groups.amin(-1).clamp_max(0)
        scale = (groups.amax(-1) + minimum) / (2**bits - 1)
        in_units = [(v, v.amax(-1, keepdim=True) / (2**scale_bits - 1)) for v in (scale, minimum)]
        scale, minimum = (((v / unit).round() * unit).unsqueeze(-1) for v, unit in in_units)
        codes = ((groups + minimum) / scale.clamp_min(1e-12)).round().clamp(0, 2**bits - 1)
        return (codes * scale - minimum).reshape(weight.shape)

    return apply


def nvfp4(weight: torch.Tensor) -> torch.Tensor:
    return activations.nvfp4(weight.unflatten(1, (-1, 16)), 448 * 6 / float(weight.abs().max())).flatten(1)


FORMATS: dict[str, Callable] = {
    "Q4_0": legacy("Q4_0"),
    "Q5_0": legacy("Q5_0"),
    "Q8_0": legacy("Q8_0"),
    "Q2_K, rounded to nearest": from_a_minimum(2, 16, 4),
    "Q3_K, rounded to nearest": around_zero(3, 16),
    "Q4_K, rounded to nearest": from_a_minimum(4, 32, 6),
    "Q5_K, rounded to nearest": from_a_minimum(5, 32, 6),
    "Q6_K, rounded to nearest": around_zero(6, 16),
    "FP8 by row": activations.fp8_dynamic,
    "FP8 by matrix": lambda w: activations.fp8_dynamic(w.reshape(1, -1)).reshape(w.shape),
    "NVFP4": nvfp4,
    "MXFP4": lambda w: activations.mx(w.unflatten(1, (-1, 32)), 4).flatten(1),
    "MXFP8": lambda w: activations.mx(w.unflatten(1, (-1, 32)), 8).flatten(1),
}


def main() -> None:
    torch.set_grad_enabled(False)
    stored = {n.removesuffix(".weight"): w.float() for n, w in load_reference().items() if "proj" in n}
    original = chosen(stored)
    with open(Path(__file__).with_suffix(".csv"), "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for name, apply in FORMATS.items():
            weights = {n: apply(w) for n, w in original.items()}
            row = {"format": name} | rates(weights, torch.bfloat16, None)
            writer.writerow(row)
            stream.flush()
            print({key: row[key] for key in COLUMNS}, flush=True)


if __name__ == "__main__":
    main()
