"""Stage times of the default run as this processor is and as one without 16-bit instructions (AVX2), side by side.

    python tests/benchmark/processor_times.py --python .venv-evaluation/bin/python

Clones this checkout (what is committed) twice, runs `snakemake` in each, one after the other, and sums the jobs of each
stage: seconds by Snakemake's clock and of processor time. The libraries are kept to AVX2 by their own variables. On a
machine that does other things the processor time is the figure to compare.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
MODES = {"as it is": {}, "AVX2": AVX2}
STAGES = ["quantize", "tasks", "generation", "logits", "perplexity", "divergence", "integrity", "checks"]


def run(folder: Path, python: Path, cores: str, limits: dict[str, str]) -> float:
    """Seconds of the whole run in a new clone in `folder`; raises SystemExit with the end of its output if it fails."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    snakemake = Path(sys.executable).with_name("snakemake")
    command = [str(snakemake), "--cores", cores, "--resources", "gpu=1", "--config", f"python={python}", "device=cpu"]
    begin = time.perf_counter()
    ended = subprocess.run(command, cwd=folder, env=os.environ | limits, capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit(f"error: the run in {folder} failed: {ended.stderr[-2000:]}")
    return time.perf_counter() - begin


def stage_sums(results: Path) -> dict[str, tuple[float, float]]:
    """{stage: (seconds, processor seconds)} over its jobs, from Snakemake's benchmark files."""
    sums = {}
    for stage in STAGES:
        rows = []
        for path in sorted((results / "benchmarks" / stage).glob("**/*.tsv")):
            with open(path, encoding="utf-8") as stream:
                rows.append(next(csv.DictReader(stream, delimiter="\t")))
        sums[stage] = tuple(sum(float(row[key]) for row in rows) for key in ("s", "cpu_time"))
    return sums


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, default=ROOT / ".venv-evaluation/bin/python", help="of the evaluation")
    parser.add_argument("--cores", default="all")
    parser.add_argument("--folder", type=Path, help="where the two runs are made and left (a new folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        sums, whole = {}, {}
        for number, (mode, limits) in enumerate(MODES.items()):
            clone = folder / str(number)
            whole[mode] = run(clone, arguments.python.absolute(), arguments.cores, limits)
            sums[mode] = stage_sums(clone / "results")
    print(f"{'':12}" + "".join(f"{mode:>22}" for mode in MODES))
    print(f"{'stage':12}" + f"{'s':>11}{'CPU s':>11}" * len(MODES))
    for stage in STAGES:
        print(f"{stage:12}" + "".join(f"{value:11.1f}" for mode in MODES for value in sums[mode][stage]))
    totals = {mode: [sum(column) for column in zip(*sums[mode].values(), strict=True)] for mode in MODES}
    print(f"{'all':12}" + "".join(f"{value:11.1f}" for mode in MODES for value in totals[mode]))
    print(f"{'whole run':12}" + "".join(f"{whole[mode]:11.1f}{'':11}" for mode in MODES))


if __name__ == "__main__":
    main()
