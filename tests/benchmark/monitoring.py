"""How soon the monitor notices another checkpoint, and how often it cries wolf.

    PYTHONPATH=workflow python tests/benchmark/monitoring.py results/reference [--approved int8]

Takes divergence.parquet of finished cells of one model and simulates runs of `snakemake monitor` by drawing prompts
from them as it does: limits learned from the approved cell, then (a) the approved cell for ever: runs until a false
alarm; (b) every other cell deployed in its place; (c) the approved cell's KL grown by a share, at once or a little in
each run. Prints mean and median run length over many repetitions. No model is run.
"""

import argparse
from pathlib import Path

import numpy
import pandas

from quantharm import monitor
from quantharm.common import control_chart
from quantharm.common.prompt_means import read_prompt_means

LONGEST = 5_000  # runs; chains without an alarm count as one more


def all_draws(means: pandas.Series, per_category: int, shape: tuple[int, int], generator) -> numpy.ndarray:
    """The figures of so many chains of runs, as monitor.draws takes them one by one; [chains, runs]."""
    total = numpy.zeros(shape)
    prompts = 0
    for _, part in means.groupby(level="category", sort=False):
        values = part.to_numpy()
        count = min(per_category, len(values))
        order = numpy.argsort(generator.random((*shape, len(values))), axis=-1)[..., :count]
        total += values[order].sum(-1)
        prompts += count
    return total / prompts


def lengths_row(name: str, values: numpy.ndarray, limits: control_chart.Limits) -> dict:
    lengths = control_chart.run_lengths(values, limits)
    return {
        "deployed": name,
        "kl_nats_mean": float(values[:, 0].mean()),
        "shift_in_standard_deviations": float((values[:, 0].mean() - limits.mean) / limits.standard_deviation),
        "run_length_mean": float(lengths.mean()),
        "run_length_median": float(numpy.median(lengths)),
        "run_length_p90": float(numpy.quantile(lengths, 0.9)),
        "never_in_percent": 100 * float((lengths > values.shape[1]).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="results folder of a model")
    parser.add_argument("--approved", default="int8")
    parser.add_argument("--per-category", type=int, default=1)
    parser.add_argument("--baseline-runs", type=int, default=1000)
    parser.add_argument("--weight", type=float, default=0.2)
    parser.add_argument("--width", type=float, default=2.962)
    parser.add_argument("--chains", type=int, default=400)
    arguments = parser.parse_args()
    settings = {key: getattr(arguments, key) for key in ("per_category", "baseline_runs", "weight", "width")}
    limits = monitor.learn_limits(arguments.model / arguments.approved, settings)
    own = read_prompt_means(arguments.model / arguments.approved)
    shape = (arguments.chains, LONGEST)
    undisturbed = all_draws(own, arguments.per_category, shape, numpy.random.default_rng(1))
    rows = [lengths_row(f"{arguments.approved} (nothing changed)", undisturbed, limits)]
    for cell in sorted(arguments.model.iterdir()):
        if (cell / "divergence.parquet").is_file() and cell.name != arguments.approved:
            shape = (arguments.chains, 500)
            values = all_draws(read_prompt_means(cell), arguments.per_category, shape, numpy.random.default_rng(1))
            rows.append(lengths_row(cell.name, values, limits))
    for rise in (0.05, 0.1, 0.2, 0.5, 1.0):
        rows.append(lengths_row(f"{arguments.approved}, KL {1 + rise:g} times", undisturbed * (1 + rise), limits))
    for rise in (0.001, 0.01):
        growth = 1 + rise * numpy.arange(LONGEST)
        rows.append(lengths_row(f"{arguments.approved}, KL {rise:+.1%} a run", undisturbed * growth, limits))
    print(f"limits: mean {limits.mean:.4g}, standard deviation {limits.standard_deviation:.3g} nats a run")
    print(pandas.DataFrame(rows).to_string(index=False, float_format="{:.4g}".format))


if __name__ == "__main__":
    main()
