"""What the scan for dequantized weights sees of the formats that people ship: 21 matrices of the built-in model.

    PYTHONPATH=workflow python tests/benchmark/scan_of_formats.py [--clean NAME=FOLDER …]

Each format is applied to the weights (GGUF's legacy types by the package `gguf`, the others by arithmetic here), stored
in bfloat16 and scanned; counted are the traces, and those that name the format, its groups and their axis. The last
rows are false alarms: the same matrices, random ones and those of further models (--clean), never quantized, in three
storage formats. Writes scan_of_formats.csv beside this file.
"""

import argparse
import csv
from collections.abc import Callable
from pathlib import Path

import gguf
import torch
from integrity_detection import chosen, gptq, load_reference, random_matrices, rates, real_weights

from quantharm.quantizers.formats import activations

SUPER_BLOCK = 256
COLUMNS = (
    "format",
    "matrices",
    "detected",
    "recovered",
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


def by_blocks(weight: torch.Tensor, size: int = 128) -> torch.Tensor:
    """FP8 with a scale a block of 128 rows and columns."""
    blocks = weight.unflatten(1, (-1, size)).unflatten(0, (-1, size)).transpose(1, 2)
    rounded = activations.fp8_dynamic(blocks.flatten(2)).view(blocks.shape)
    return rounded.transpose(1, 2).flatten(2).flatten(0, 1)


def integer(bits: int, size: int) -> tuple:
    return (f"{bits}-bit integer", size, "input")


def any_order(bits: int) -> tuple:
    return (f"{bits}-bit integer, columns in any order", 128, "input")


FP4, FP8 = "FP4 (E2M1)", ("FP8 (E4M3)", "whole", "input")
# name: (how, what the scan should call it)
FORMATS: dict[str, tuple[Callable, tuple]] = {
    "Q4_0": (legacy("Q4_0"), integer(4, 32)),
    "Q5_0": (legacy("Q5_0"), integer(5, 32)),
    "Q8_0": (legacy("Q8_0"), integer(8, 32)),
    "Q2_K, rounded to nearest": (from_a_minimum(2, 16, 4), integer(2, 16)),
    "Q3_K, rounded to nearest": (around_zero(3, 16), integer(3, 16)),
    "Q4_K, rounded to nearest": (from_a_minimum(4, 32, 6), integer(4, 32)),
    "Q5_K, rounded to nearest": (from_a_minimum(5, 32, 6), integer(5, 32)),
    "Q6_K, rounded to nearest": (around_zero(6, 16), integer(6, 16)),
    "FP8 by row": (activations.fp8_dynamic, FP8),
    "FP8 by matrix": (lambda w: activations.fp8_dynamic(w.reshape(1, -1)).reshape(w.shape), FP8),
    "FP8 in blocks of 128 × 128": (by_blocks, ("FP8 (E4M3)", 128, "input")),
    "NVFP4": (nvfp4, (FP4, 16, "input")),
    "MXFP4": (lambda w: activations.mx(w.unflatten(1, (-1, 32)), 4).flatten(1), (FP4, 32, "input")),
    "MXFP8": (lambda w: activations.mx(w.unflatten(1, (-1, 32)), 8).flatten(1), FP8),
    "GPTQ-like 4 bits, 128, act-order": (lambda w: gptq(w, 4, 128, True), any_order(4)),
    "GPTQ-like 3 bits, 128, act-order": (lambda w: gptq(w, 3, 128, True), any_order(3)),
    "GPTQ-like 8 bits, 128, act-order": (lambda w: gptq(w, 8, 128, True), any_order(8)),
}


def never_quantized(original: dict[str, torch.Tensor], clean: dict[str, Path]) -> dict[str, dict[str, torch.Tensor]]:
    """{name: matrices}"""
    further = {name: {n: w.float() for n, w in real_weights(folder).items()} for name, folder in clean.items()}
    return {"the built-in model": original, "random matrices": random_matrices()} | further


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clean", nargs="*", default=[], metavar="NAME=FOLDER", help="real models never quantized")
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    stored = {n.removesuffix(".weight"): w.float() for n, w in load_reference().items() if "proj" in n}
    original = chosen(stored)
    clean = {name: Path(folder) for name, _, folder in (given.partition("=") for given in arguments.clean)}
    with open(Path(__file__).with_suffix(".csv"), "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()

        def write(name: str, figures: dict) -> None:
            row = {"format": name} | figures
            writer.writerow(row)
            stream.flush()
            print({key: row[key] for key in COLUMNS}, flush=True)

        for name, (apply, expected) in FORMATS.items():
            write(name, rates({n: apply(w) for n, w in original.items()}, torch.bfloat16, expected))
        for name, weights in never_quantized(original, clean).items():
            for dtype in (torch.bfloat16, torch.float16, torch.float32):
                words = str(dtype).removeprefix("torch.")
                write(f"nothing: {name}, {words}", rates(weights, dtype, None))


if __name__ == "__main__":
    main()
