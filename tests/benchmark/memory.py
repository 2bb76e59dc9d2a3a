"""Peak memory of the divergence stage for 12 prompts and for 96: it must not grow with the number of prompts.

    python tests/benchmark/memory.py [work folder]

Makes a baseline, its answers to 1 and to 8 prompts a category and the two stores, then runs the divergence stage on
each in a process of its own and compares the peaks. Run it with the evaluation environment's interpreter.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
JOB = {  # as workflow/rules/common.smk sets them for each job, and the last two divergence.smk
    "PYTHONPATH": str(ROOT / "workflow"),
    "OMP_WAIT_POLICY": "passive",
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "268435456",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "12",
    "LRU_CACHE_CAPACITY": "1",
}


def stage(name: str, **flags) -> None:
    command = [sys.executable, "-m", f"quantharm.{name}"]
    for flag, value in flags.items():
        command += [f"--{flag.replace('_', '-')}", str(value)]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | JOB, stderr=subprocess.DEVNULL)


def peak_bytes(folder: Path, per_category: int) -> tuple[int, int]:
    """(prompts, peak memory) of a divergence stage over so many prompts a category."""
    quantization, text = folder / "quantization.json", ROOT / "data/evaluation.txt"
    cell = folder / str(per_category)
    stage(
        "generation",
        quantization=quantization,
        prompts=ROOT / "data/prompts.jsonl",
        prompts_per_category=per_category,
        max_new_tokens=32,
        benchmark_new_tokens=2,
        benchmark_repetitions=2,
        benchmark_seconds=0,
        rows=cell / "generation.parquet",
        output=cell / "generation.json",
    )
    stage(
        "logits",
        quantization=quantization,
        generation=cell / "generation.parquet",
        text=text,
        trace=cell / "trace.parquet",
        output=cell / "logits.parquet",
        record=cell / "logits.json",
    )
    stage(
        "divergence",
        quantization=quantization,
        trace=cell / "trace.parquet",
        logits=cell / "logits.parquet",
        rows=cell / "divergence.parquet",
        output=cell / "divergence.json",
    )
    generation = json.loads((cell / "generation.json").read_text())
    return generation["prompts"], json.loads((cell / "divergence.json").read_text())["peak_memory_bytes"]


def main() -> None:
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as work:
        folder = Path(work)
        stage("fetch", model="reference", source="data/reference-model", output=folder / "source.json")
        stage(
            "quantize",
            source=folder / "source.json",
            method="baseline",
            quantizer="unquantized",
            checkpoint=folder / "checkpoint",
            output=folder / "quantization.json",
        )
        peaks = [peak_bytes(folder, per_category) for per_category in (1, 8)]
    for prompts, peak in peaks:
        print(f"{prompts:3} prompts: peak {peak / 1e6:.1f} MB")
    print(f"ratio {peaks[1][1] / peaks[0][1]:.4f}")


if __name__ == "__main__":
    main()
