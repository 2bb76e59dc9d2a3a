"""Seconds of dequantizing one matrix in each format, as the check `stored_weights` does with every matrix of a file.

    PYTHONPATH=workflow python tests/benchmark/dequantize.py [--rows 4096 --columns 14336 --threads 1]

Random bytes in the format's layout, the fastest of three. The file is not read here.
"""

import argparse
import time
from collections.abc import Callable

import torch
from bitsandbytes.functional import quantize_4bit

from quantharm.quantizers import bitsandbytes_4bit, quantized_layers
from quantharm.quantizers.formats import awq, compressed_tensors_matrices, ggml, gptq_matrices, mxfp4

Dequantize = Callable[[], torch.Tensor]
GROUP = 128
INTEGERS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP, "symmetric": True}
FP4 = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": True}
BY_ROW = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}


def words(*shape: int) -> torch.Tensor:
    return torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32)


def some_bytes(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def in_gptq(bits: int, rows: int, columns: int) -> Dequantize:
    groups = columns // GROUP
    tensors = {"qweight": words(columns * bits // 32, rows), "qzeros": words(groups, rows * bits // 32)}
    tensors |= {"scales": torch.rand(groups, rows).half(), "g_idx": (torch.arange(columns) // GROUP).int()}
    return lambda: gptq_matrices.dequantize(tensors, bits, first=True)


def in_awq(rows: int, columns: int) -> Dequantize:
    groups = columns // GROUP
    tensors = {"qweight": words(columns, rows // 8), "qzeros": words(groups, rows // 8)}
    tensors |= {"scales": torch.rand(groups, rows).half()}
    return from_tensors(tensors, lambda: awq.dequantize(None, "", GROUP))


def in_4_bits(rows: int, columns: int) -> Dequantize:
    packed, state = quantize_4bit(torch.randn(rows, columns), quant_type="nf4", compress_statistics=True, blocksize=64)
    tensors = {"weight": packed} | {f"weight.{name}": value for name, value in state.as_dict(packed=True).items()}
    return from_tensors(tensors, lambda: bitsandbytes_4bit.dequantize(None, "", rows, columns))


def from_tensors(tensors: dict[str, torch.Tensor], dequantize: Dequantize) -> Dequantize:
    """dequantize(), which finds the tensors where it would read them from a file."""

    def call() -> torch.Tensor:
        quantized_layers.stored_tensors = lambda checkpoint, name: tensors
        return dequantize()

    return call


def in_compressed_tensors(rows: int, columns: int) -> dict[str, Dequantize]:
    of_rows, of_groups = torch.rand(rows, 1), torch.rand(rows, columns // GROUP).bfloat16()
    float8 = torch.rand(rows, columns).to(torch.float8_e4m3fn)
    stored = {
        "compressed-tensors W4A16": ({"weight_packed": words(rows, columns // 8), "weight_scale": of_groups}, INTEGERS),
        "compressed-tensors W8A8": (
            {"weight": some_bytes(rows, columns).view(torch.int8), "weight_scale": of_rows},
            BY_ROW,
        ),
        "compressed-tensors FP8": ({"weight": float8, "weight_scale": of_rows}, BY_ROW | {"type": "float"}),
        "compressed-tensors NVFP4": (
            {
                "weight_packed": some_bytes(rows, columns // 2),
                "weight_scale": torch.rand(rows, columns // 16).to(torch.float8_e4m3fn),
                "weight_global_scale": torch.rand(1),
            },
            FP4,
        ),
    }
    dequantize = compressed_tensors_matrices.dequantize
    return {name: lambda given=given: dequantize(*given, rows, columns) for name, given in stored.items()}


def formats(rows: int, columns: int) -> dict[str, Dequantize]:
    blocks = {name: some_bytes(rows * columns // kind.weights, kind.bytes) for name, kind in ggml.TYPES.items()}
    of_fp4 = some_bytes(rows, columns // 32, 16), some_bytes(rows, columns // 32)
    return {
        "NF4, nested": in_4_bits(rows, columns),
        "AWQ": in_awq(rows, columns),
        **{f"GPTQ, {bits} bits": in_gptq(bits, rows, columns) for bits in (2, 3, 4, 8)},
        **in_compressed_tensors(rows, columns),
        "MXFP4": lambda: mxfp4.dequantize(*of_fp4),
        **{f"GGUF {name}": lambda name=name: ggml.TYPES[name].dequantize(blocks[name]) for name in blocks},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=14336)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.set_num_threads(arguments.threads)
    print("| format | s |\n|---|--:|")
    for name, dequantize in formats(arguments.rows, arguments.columns).items():
        times = []
        for _ in range(3):
            begin = time.perf_counter()
            dequantize()
            times.append(time.perf_counter() - begin)
        print(f"| {name} | {min(times):.2f} |", flush=True)


if __name__ == "__main__":
    main()
