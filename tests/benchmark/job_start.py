"""What starting the jobs of a run cost: seconds of imports by package, from logs in which Python says so.

    PYTHONPROFILEIMPORTTIME=1 snakemake --cores 1 --resources gpu=1
    python tests/benchmark/job_start.py results

Python then writes a line for each module that it imports into the job's log; the time of a line is the module's own,
without what it imports itself. A table of stages, then one of packages; seconds are sums over jobs. The profile itself
adds a fifth or so; `start` in stage_times.py, of a run without it, is the time to quote.
"""

import collections
import re
import sys
from pathlib import Path

LINE = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)")
SHOWN = 14


def imports(log: Path) -> dict[str, float]:
    """{top-level package: seconds} of one job; the standard library's modules are one package."""
    seconds: dict[str, float] = collections.Counter()
    for microseconds, module in LINE.findall(log.read_text(encoding="utf-8", errors="replace")):
        top = module.split(".")[0]
        seconds["(standard library)" if top in sys.stdlib_module_names else top] += int(microseconds) / 1e6
    return seconds


def main() -> None:
    results = Path(sys.argv[1] if len(sys.argv) > 1 else "results")
    stages: dict[str, list[dict[str, float]]] = collections.defaultdict(list)
    for log in sorted((results / "logs").rglob("*.log")):
        if spent := imports(log):
            stages[log.relative_to(results / "logs").parts[0].removesuffix(".log")].append(spent)
    if not stages:
        sys.exit(f"error: no log in {results}/logs holds import times; run with PYTHONPROFILEIMPORTTIME=1")
    packages: dict[str, float] = collections.Counter()
    print(f"{'stage':22}{'jobs':>5}{'seconds':>9}{'a job':>8}  most of it")
    for stage, jobs in stages.items():
        sums: dict[str, float] = collections.Counter()
        for job in jobs:
            sums.update(job)
        packages.update(sums)
        most = ", ".join(f"{name} {seconds / len(jobs):.2f}" for name, seconds in sums.most_common(4))
        print(f"{stage:22}{len(jobs):5}{sum(sums.values()):9.1f}{sum(sums.values()) / len(jobs):8.2f}  {most}")
    total = sum(packages.values())
    print(f"{'all':22}{sum(map(len, stages.values())):5}{total:9.1f}")
    for name, seconds in packages.most_common(SHOWN):
        print(f"  {name:24}{seconds:9.2f}{seconds / total:8.1%}")


if __name__ == "__main__":
    main()
