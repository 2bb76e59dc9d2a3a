"""How long the integrity command takes over a checkpoint of 7 billion parameters, and how much memory.

    PYTHONPATH=workflow python tests/benchmark/integrity_speed.py [--layers 32] [--quantized] [--folder FOLDER]
    PYTHONPATH=workflow python tests/benchmark/integrity_speed.py --threads 1 2 4 8

Writes a checkpoint of Mistral-7B's shapes in bfloat16 (14.5 GB, a file a layer; random numbers, or as LLM.int8 would
leave them), takes it out of the page cache, and runs `python -m quantharm.integrity` on it as a user would: the scan
alone, then with a signed manifest, for which every byte is read and hashed. The folder is removed at the end.
With --threads, only the scan itself, from the page cache, with at most so many threads, each three times in turn.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from quantharm.config.architectures import read_architecture
from quantharm.forensics import manifest
from quantharm.forensics.detection import checkpoints

SHAPES = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (1024, 4096),
    "self_attn.v_proj": (1024, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (14336, 4096),
    "mlp.up_proj": (14336, 4096),
    "mlp.down_proj": (4096, 14336),
}
ENDS = {"model.embed_tokens": (32000, 4096), "lm_head": (32000, 4096)}


def weights(shape: tuple[int, int], quantized: bool, random: torch.Generator) -> torch.Tensor:
    weight = 0.02 * torch.randn(shape, generator=random)
    if quantized:
        scale = weight.abs().amax(1, keepdim=True) / 127
        weight = (weight / scale).round() * scale
    return weight.bfloat16()


def write_checkpoint(folder: Path, layers: int, quantized: bool) -> int:
    """Every layer holds the same numbers, under names of its own; returns the bytes written."""
    random = torch.Generator().manual_seed(0)
    layer = {name: weights(shape, quantized, random) for name, shape in SHAPES.items()}
    files = [{f"model.layers.{i}.{n}.weight": w for n, w in layer.items()} for i in range(layers)]
    files.append({f"{name}.weight": weights(shape, False, random) for name, shape in ENDS.items()})
    (folder / "config.json").write_text(json.dumps(read_architecture("mistral-7b")))
    for i, tensors in enumerate(files):
        save_file(tensors, folder / f"model-{i:02d}.safetensors")
    return sum(path.stat().st_size for path in folder.iterdir())


def forget(folder: Path) -> None:
    """Take the files out of the page cache, as they are when somebody has just received them on a disk."""
    for path in folder.iterdir():
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def run(what: str, size: int, *flags: object) -> None:
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "quantharm.integrity", *map(str, flags)], stdout=subprocess.PIPE, text=True
    )
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    print(done.stdout)
    print(
        f"{what}: {size / 1e9:.1f} GB in {seconds:.0f} s, exit code {done.returncode}, peak {peak:.2f} GB", flush=True
    )


def compare_threads(folder: Path, numbers: list[int]) -> None:
    checkpoints.scan_folder(folder)  # fills the page cache
    seconds: dict[int, list[float]] = {n: [] for n in numbers}
    for n in numbers * 3:
        checkpoints.SCAN_THREADS = n
        begin = time.perf_counter()
        checkpoints.scan_folder(folder)
        seconds[n].append(time.perf_counter() - begin)
    for n, taken in seconds.items():
        print(f"{n} threads: {', '.join(f'{s:.1f}' for s in taken)} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--quantized", action="store_true", help="the layers as LLM.int8 would leave them")
    parser.add_argument("--folder", type=Path, help="where the checkpoint is written and removed")
    parser.add_argument("--threads", type=int, nargs="+", help="compare these numbers of threads")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as work:
        checkpoint, private, public, signature = (Path(work) / n for n in ("checkpoint", "k.pem", "k.pub", "sig"))
        checkpoint.mkdir()
        size = write_checkpoint(checkpoint, arguments.layers, arguments.quantized)
        if arguments.threads:
            return compare_threads(checkpoint, arguments.threads)
        forget(checkpoint)
        run("scan", size, checkpoint)
        manifest.make_keys(private, public)
        begin = time.perf_counter()
        manifest.sign(checkpoint, private, signature)
        print(f"signed in {time.perf_counter() - begin:.0f} s")
        forget(checkpoint)
        run("signature and scan", size, checkpoint, "--signature", signature, "--public-key", public)


if __name__ == "__main__":
    main()
