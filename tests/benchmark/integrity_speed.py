"""How fast the scan for dequantized weights is: seconds and MB/s over a synthetic shard of a 7B model's shapes.

    PYTHONPATH=workflow python tests/benchmark/integrity_speed.py [--layers 2] [--folder FOLDER]

Writes so many layers of a Mistral-7B-shaped checkpoint in bfloat16 (0.44 GB each), never quantized and as LLM.int8
stores it, scans them from disk, and extrapolates to 32 layers, embedding and head.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from quantharm.detection.scan import scan_matrix
from quantharm.detection.weights import read_matrices
from quantharm.provenance import memory_bytes

SHAPES = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (1024, 4096),
    "self_attn.v_proj": (1024, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (14336, 4096),
    "mlp.up_proj": (14336, 4096),
    "mlp.down_proj": (4096, 14336),
}
ENDS = (32000, 4096)  # embedding and head
LAYERS = 32


def write_layer(path: Path, quantized: bool) -> int:
    random = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in SHAPES.items():
        weight = 0.02 * torch.randn(shape, generator=random)
        if quantized:
            scale = weight.abs().amax(1, keepdim=True) / 127
            weight = (weight / scale).round() * scale
        tensors[f"model.layers.0.{name}.weight"] = weight.bfloat16()
    save_file(tensors, path)
    return path.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2, help="half of them quantized")
    parser.add_argument("--folder", type=Path, help="where the shards are written and removed")
    arguments = parser.parse_args()
    for quantized in (False, True):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            for layer in range(max(1, arguments.layers // 2)):
                size = write_layer(Path(folder) / f"model-{layer}.safetensors", quantized)
            begin = time.perf_counter()
            found = [scan_matrix(m) for m in read_matrices(Path(folder))]
            seconds = time.perf_counter() - begin
        layers = len(found) / len(SHAPES)
        ends = 2 * ENDS[0] * ENDS[1] * 2 / size  # their weight in layers
        whole = (LAYERS * len(SHAPES) + 2) * seconds / len(found)
        coverage = sum(m["sampled_weights"] for m in found) / sum(m["shape"][0] * m["shape"][1] for m in found)
        traces = sum(m["verdict"] == "dequantized" for m in found)
        print(
            f"{'int8' if quantized else 'never quantized'}: {len(found)} matrices, {layers * size / 1e6:,.0f} MB in "
            f"{seconds:.1f} s, {layers * size / 1e6 / seconds:,.0f} MB/s, {traces} with a trace; a 7B model "
            f"({(LAYERS + ends) * size / 1e9:.1f} GB) would take {whole:.0f} s; "
            f"peak {memory_bytes('cpu')['peak_bytes'] / 1e9:.2f} GB, "
            f"{coverage:.2%} of the weights sampled"
        )


if __name__ == "__main__":
    main()
