"""What the statistics of tasks are worth: coverage of the intervals, level and power of the test, by simulation.

    PYTHONPATH=workflow .venv-evaluation/bin/python tests/benchmark/task_statistics.py [--runs 4000]

Answers of a baseline and of a method are drawn from known shares: right in both, lost, gained, wrong in both. Printed:
a table in Markdown, a row a number of items, the mean and the least over 24 such sets of shares.
"""

import argparse
import itertools

import numpy

from quantharm.common.accuracy import (
    LEVEL,
    Pairs,
    accuracy_interval,
    change_interval,
    mcnemar_p,
    recovery_interval,
    smallest_detectable_change,
)

ITEMS = (50, 100, 320, 1000)
ACCURACIES, LOST, GAINED = (0.3, 0.6, 0.9), (0.005, 0.02, 0.05, 0.1), (0.005, 0.05)


def tables_of(generator, items: int, accuracy: float, lost: float, gained: float, runs: int) -> list[Pairs]:
    drawn = generator.multinomial(items, [accuracy - lost, lost, gained, 1 - accuracy - gained], runs)
    return [Pairs(*map(int, row)) for row in drawn]


def covered(intervals: list, truth: float) -> float:
    """Share of the intervals that hold the truth; one that is not given does not."""
    return float(numpy.mean([i is not None and i[0] <= truth <= i[1] for i in intervals]))


def coverage(generator, items: int, runs: int) -> dict[str, list[float]]:
    shares: dict[str, list[float]] = {"accuracy": [], "change": [], "recovery": [], "recovery of two tasks": []}
    for accuracy, lost, gained in itertools.product(ACCURACIES, LOST, GAINED):
        tables = tables_of(generator, items, accuracy, lost, gained, runs)
        others = tables_of(generator, 2 * items, 0.5, 0.03, 0.02, runs)
        now = accuracy - lost + gained
        shares["accuracy"].append(covered([accuracy_interval([t.both + t.gained], [t.items]) for t in tables], now))
        shares["change"].append(covered([change_interval([t]) for t in tables], gained - lost))
        shares["recovery"].append(covered([recovery_interval([t]) for t in tables], now / accuracy))
        both = [recovery_interval(list(pair)) for pair in zip(tables, others, strict=True)]
        shares["recovery of two tasks"].append(covered(both, (now + 0.49) / (accuracy + 0.5)))
    return shares


def shown(generator, items: int, flips: float, change: float, runs: int) -> float:
    """Share of runs in which the test calls a true change a change."""
    tables = tables_of(generator, items, 0.6, (flips + change) / 2, (flips - change) / 2, runs)
    return float(numpy.mean([mcnemar_p(t.lost, t.gained) <= LEVEL for t in tables]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=4000)
    runs = parser.parse_args().runs
    generator = numpy.random.default_rng(0)
    print(
        "| items | accuracy | change | recovery | recovery of two tasks | level of the test | power at the smallest |"
    )
    print("|--:|--:|--:|--:|--:|--:|--:|")
    for items in ITEMS:
        cells = [f"{numpy.mean(v):.3f} ({min(v):.3f})" for v in coverage(generator, items, runs).values()]
        levels = [shown(generator, items, flips, 0.0, runs) for flips in (0.02, 0.05, 0.15)]
        powers = []
        for flips in (0.02, 0.05, 0.15):
            least = smallest_detectable_change(items, round(flips * items))
            assert least is not None
            powers.append(shown(generator, items, max(flips, least), least, runs))
        cells += [f"{max(levels):.3f} at most", f"{min(powers):.3f} to {max(powers):.3f}"]
        print(f"| {items} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
