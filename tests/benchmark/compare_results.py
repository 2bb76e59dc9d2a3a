"""Whether two finished runs hold the same figures, to the last digit: for a change that is to alter none.

    python tests/benchmark/compare_results.py BEFORE/results AFTER/results

Compares every JSON record and every Parquet table of the cells, summaries and reports; leaves out times, rates, memory,
energy, provenance and the paths of folders. Prints each difference; exit code 1 where there is one.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas

# Keys whose values depend on the clock, the machine or the place, not on the model.
UNSTABLE = re.compile(
    r"seconds|second|timing|memory|peak|energy|joules|provenance|rate$|speed|benchmark|host_wait|roofline|modified_ns"
    r"|checkpoint$|path$|command|bandwidth|finished|record_sha256|git_commit|decode|prefill"
)
# Logits are compared through what is scored on them; these tables mix times and sizes of files with figures, all of
# which stand in other files as well.
SKIPPED = {"logits.parquet", "environment.parquet", "files.parquet", "overall.parquet"}


def leaves(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """(path, value) of every value that a rerun must give again."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not UNSTABLE.search(key):
                yield from leaves(item, f"{where}.{key}")
    elif isinstance(value, list):
        for position, item in enumerate(value):
            yield from leaves(item, f"{where}[{position}]")
    else:
        yield where, value


def figures_of(path: Path) -> dict[str, Any]:
    """{path within the file: value} of a JSON record or a Parquet table."""
    if path.suffix == ".json":
        return dict(leaves(json.loads(path.read_text(encoding="utf-8")), ""))
    table = pandas.read_parquet(path)
    kept = [column for column in table.columns if not UNSTABLE.search(str(column))]
    return {f".{column}[{row}]": repr(value) for column in kept for row, value in enumerate(table[column])}


def compared_files(results: Path) -> set[str]:
    """Records and tables by their path below `results`."""
    chosen = [p for kind in ("*.json", "*.parquet") for p in results.rglob(kind)]
    inside = [p.relative_to(results) for p in chosen if p.name not in SKIPPED]
    return {str(p) for p in inside if not {"checkpoint", "benchmarks", "logs"} & set(p.parts)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="results folder of one run")
    parser.add_argument("after", type=Path, help="results folder of the other")
    arguments = parser.parse_args()
    names = [compared_files(arguments.before), compared_files(arguments.after)]
    differences = [f"{name}: only in one of the runs" for name in sorted(names[0] ^ names[1])]
    compared = 0
    for name in sorted(names[0] & names[1]):
        before, after = (figures_of(folder / name) for folder in (arguments.before, arguments.after))
        compared += len(before)
        for key in sorted(before.keys() | after.keys()):
            values = [figures.get(key, "missing") for figures in (before, after)]
            if repr(values[0]) != repr(values[1]):
                differences.append(f"{name}{key}: {values[0]} → {values[1]}")
    for line in differences:
        print(line)
    print(f"{compared:,} values of {len(names[0] & names[1])} files compared, {len(differences)} differ")
    sys.exit(1 if differences else 0)


if __name__ == "__main__":
    main()
