"""How much the speed of one model differs from process to process, and how often the report would call two different.

    PYTHONPATH=workflow python tests/benchmark/process_spread.py [--checkpoint data/reference-model] [--processes 10]

Each process loads the checkpoint and runs the benchmark of the stage generation, one after another, on the GPU where
there is one. Printed: each process's medians, and the share of its time in which other programs had the processors.
Then, over the processes that waited less than `report.busy_percent`: their relative standard deviation in percent, with
its 95 % upper limit (χ²); and the share of pairs whose interval excludes no change, with the repetitions' spread alone
and with the config's `report.speed_process_spread_percent`, which the standard deviation printed here is meant to set.
"""

import argparse
import itertools
import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy
from scipy.stats import chi2

from quantharm.report import default_thresholds
from quantharm.reporting.differences import change_of_medians, process_spread

FIGURES = ("prefill_seconds", "decode_tokens_per_second", "captured_decode_tokens_per_second")


def measure(checkpoint: Path, dtype: str, **lengths) -> dict:
    """In a process of its own: {device, figures by name with their repetitions}; lengths: of the benchmark."""
    logging.getLogger("torchao").setLevel(logging.ERROR)  # it warns of each of its libraries that needs a GPU
    import torch
    from transformers import AutoModelForCausalLM

    from quantharm.common.stage import begin_offline_stage
    from quantharm.models.devices import choose_device
    from quantharm.models.loading import quiet
    from quantharm.speed.benchmark import benchmark

    begin_offline_stage()
    quiet()
    device = choose_device("auto", 1)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=getattr(torch, dtype)).to(device).eval()
    speeds = benchmark(model, **lengths)
    captured = speeds["captured"].get("decode_tokens_per_second")
    figures = {name: speeds[name]["values"] for name in FIGURES[:2]}
    return {"device": device, "waited": speeds["processor_wait_share"], **figures} | (
        {FIGURES[2]: captured["values"]} if captured else {}
    )


def share_called_different(values: list[list[float]], spread: float) -> float:
    pairs = list(itertools.combinations(values, 2))
    bounds = [change_of_medians(first, second, spread)[1] for first, second in pairs]
    return sum(b is not None and not b[0] <= 0 <= b[1] for b in bounds) / len(pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("data/reference-model"))
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--processes", type=int, default=10)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=10, help="at least")
    parser.add_argument("--seconds", type=float, default=10.0, help="at least")
    parser.add_argument("--once", action="store_true", help="one process: print its repetitions as JSON")
    given = parser.parse_args()
    if given.once:
        lengths = {
            k: v for k, v in vars(given).items() if k in ("prompt_tokens", "new_tokens", "repetitions", "seconds")
        }
        print(json.dumps(measure(given.checkpoint, given.dtype, **lengths)))
        return
    runs = []
    for process in range(given.processes):
        command = [sys.executable, __file__, "--once", *sys.argv[1:]]
        answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        runs.append(json.loads(answer.stdout.splitlines()[-1]))
        shown = {name: f"{numpy.median(runs[-1][name]):.5g}" for name in FIGURES if name in runs[-1]}
        print(f"process {process + 1}: {shown}, waited {runs[-1]['waited'] or 0:.1%}", flush=True)
    device = runs[0]["device"].split(":")[0]
    configured, busy = (default_thresholds()[key] for key in ("speed_process_spread_percent", "busy_percent"))
    left_alone = [run for run in runs if 100 * (run["waited"] or 0) <= busy]
    print(f"{len(left_alone)} of {len(runs)} processes waited less than {busy:g} % of their time; of these:")
    for name in FIGURES:
        values = [run[name] for run in left_alone if name in run]
        if len(values) < 2:
            continue
        deviation = numpy.log([numpy.median(v) for v in values]).std(ddof=1)
        upper = deviation * ((len(values) - 1) / chi2.ppf(0.05, len(values) - 1)) ** 0.5
        percent = configured[f"{device}_captured" if name.startswith("captured") else device]
        print(
            f"{name} on {device}: standard deviation between processes {100 * numpy.expm1(deviation):.2f} %, at most "
            f"{100 * numpy.expm1(upper):.2f} %; pairs called different {share_called_different(values, 0.0):.0%} by "
            f"repetitions alone, {share_called_different(values, process_spread(percent)):.0%} with {percent:g} %"
        )


if __name__ == "__main__":
    main()
