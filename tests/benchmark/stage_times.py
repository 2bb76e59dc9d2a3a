"""Where the wall time of finished jobs went: a table from the `timing` of result records and Snakemake's benchmarks.

    python tests/benchmark/stage_times.py results

start: interpreter and imports; load: model from disk; model: forward passes, quantizing and the scan of weights; other:
the rest of the process; outside: what the job took beyond its process, by Snakemake's clock.
"""

import csv
import json
import sys
from pathlib import Path

PARTS = ["start", "load", "model", "other"]
STAGES = ["quantize", "tasks", "generation", "logits", "perplexity", "divergence", "integrity", "checks"]


def timings(results: Path) -> dict[tuple[str, str], dict[str, float]]:
    """{(stage, cell): seconds by part} of every finished model job."""
    seconds = {}
    for path in sorted(results.glob("*/*/*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            sys.exit(f"error: {path} is damaged ({error}); delete it and run the workflow again")
        if isinstance(record, dict) and "timing" in record:
            stage = {"quantization": "quantize"}.get(path.stem, path.stem)
            cell = f"{path.parts[-3]}/{path.parts[-2]}"
            seconds[(stage, cell)] = {part: record["timing"].get(f"{part}_seconds", 0.0) for part in PARTS}
    return seconds


def wall_seconds(results: Path, stage: str, cell: str) -> float | None:
    path = results / "benchmarks" / stage / f"{cell}.tsv"
    if not path.is_file():
        return None
    with open(path, encoding="utf-8") as stream:
        return float(next(csv.DictReader(stream, delimiter="\t"))["s"])


def main() -> None:
    results = Path(sys.argv[1] if len(sys.argv) > 1 else "results")
    rows = timings(results)
    if not rows:
        sys.exit(f"error: {results} holds no finished model job; run the workflow first, or name its results folder")
    print(f"{'stage':12}{'cells':>6}" + "".join(f"{part:>9}" for part in PARTS) + f"{'outside':>9}{'total':>9}")
    sums = dict.fromkeys([*PARTS, "outside"], 0.0)
    for stage in STAGES:
        cells = [cell for (s, cell) in rows if s == stage]
        if not cells:
            continue
        by_part = {part: sum(rows[(stage, cell)][part] for cell in cells) for part in PARTS}
        walls = [wall_seconds(results, stage, cell) for cell in cells]
        inside = sum(by_part.values())
        by_part["outside"] = max(0.0, sum(w for w in walls if w) - inside) if all(walls) else 0.0
        for part, seconds in by_part.items():
            sums[part] += seconds
        figures = "".join(f"{by_part[part]:9.1f}" for part in [*PARTS, "outside"])
        print(f"{stage:12}{len(cells):>6}{figures}{sum(by_part.values()):9.1f}")
    total = sum(sums.values())
    print(f"{'all':12}{len(rows):>6}" + "".join(f"{s:9.1f}" for s in sums.values()) + f"{total:9.1f}")
    print(f"share of everything but the model calls: {1 - sums['model'] / total:.1%}")


if __name__ == "__main__":
    main()
