"""Differences of one method from the baseline, and of the methods from each other, paired where they can be."""

import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy

from quantharm.common import medians, ratios, shares, statistics
from quantharm.common.files import read_parquet
from quantharm.common.prompt_means import by_category, read_prompt_means
from quantharm.common.records.generation import BenchmarkRecord, GenerationRecord
from quantharm.common.records.parts import Repeated
from quantharm.reporting.format import Bounds

LEVEL = 0.05  # a difference among several is claimed below this p-value, adjusted for their number


@dataclass(frozen=True)
class Difference:
    """Mean KL of one method minus another's, in nats, with its 95 % interval and its p-value among all pairs (Holm)."""

    nats: float
    ci95: Bounds
    p_value: float

    @property
    def measurable(self) -> bool:
        """Whether the interval excludes zero, and does so among all pairs that were compared."""
        return is_measurable(self.ci95) and self.p_value < LEVEL

    @property
    def turned(self) -> "Difference":
        return Difference(-self.nats, self.ci95 and [-self.ci95[1], -self.ci95[0]], self.p_value)


def is_measurable(bounds: Bounds) -> bool:
    """Whether a 95 % interval lies on one side of zero."""
    return bounds is not None and not bounds[0] <= 0 <= bounds[1]


Changes = dict[str, tuple[float, Bounds]]  # {figure: (change from the baseline, its 95 % interval)}


def kl_differences(folders: dict[str, Path], ranges: dict[str, float], floor: float) -> dict[tuple, Difference]:
    """{(first, second): mean KL of the first minus the second's}, paired over prompts within categories.

    folders: of each method. ranges: how much KL varies with a method's calibration samples, in nats: intervals are
    widened by it on both sides. A difference of no more than it and `floor` (nats that say nothing) has the p-value 1.
    """
    means = {method: read_prompt_means(folder) for method, folder in folders.items()}
    figures, p_values = {}, {}
    for first, second in itertools.combinations(means, 2):
        strata = by_category((means[first] - means[second]).dropna())
        extra = ranges.get(first, 0.0) + ranges.get(second, 0.0)
        overall = statistics.stratified_mean(strata)
        bounds = overall["ci95"] and [overall["ci95"][0] - extra, overall["ci95"][1] + extra]
        figures[first, second] = overall["mean"], bounds
        p_values[first, second] = statistics.p_value(strata, extra + floor)
    adjusted = statistics.holm(p_values)
    pairs = {pair: Difference(*figure, adjusted[pair]) for pair, figure in figures.items()}
    return pairs | {pair[::-1]: difference.turned for pair, difference in pairs.items()}


def prompt_changes(mine: Path, baseline: Path, spread: float) -> Changes:
    """Over the same prompts; spread: of seconds, as process_spread gives it."""
    columns = ["prompt_id", "category", "seconds", "new_tokens", "succeeded"]
    both = read_parquet(mine / "generation.parquet", columns).merge(
        read_parquet(baseline / "generation.parquet", columns), on="prompt_id", suffixes=("", "_baseline")
    )
    seconds, reference = both["seconds"].to_numpy(), both["seconds_baseline"].to_numpy()
    ratio, interval = seconds.sum() / reference.sum(), ratios.weighted_mean_interval(seconds, reference)
    tokens = (both["new_tokens"] - both["new_tokens_baseline"]).to_numpy(float)
    now, before = both["succeeded"].astype(bool), both["succeeded_baseline"].astype(bool)
    gained, lost = int((now & ~before).sum()), int((before & ~now).sum())
    share = shares.paired_share_interval(gained, lost, len(both))
    return {
        "seconds_percent": in_percent(ratio, medians.widened(ratio, interval, spread)),
        "new_tokens": (float(tokens.mean()), ratios.weighted_mean_interval(tokens, numpy.ones(len(both)))),
        "succeeded_points": (100.0 * (gained - lost) / len(both), share and [100 * bound for bound in share]),
    }


def speed_changes(mine: BenchmarkRecord, baseline: BenchmarkRecord, device: str, spreads: dict[str, float]) -> Changes:
    """Of two records `benchmark`, whose repetitions are two sets, not pairs.

    `reachable_decode_percent` compares the rates that a user can reach, each side as fast as it can be decoded.
    spreads: how much two processes of one model differ in speed, in percent (config: speed_process_spread_percent);
    repetitions within one process do not show it.
    """
    changes = {}
    timed = {
        "prefill_percent": [record["prefill_seconds"] for record in (mine, baseline)],
        "decode_percent": [record["decode_tokens_per_second"] for record in (mine, baseline)],
    }
    for name, (ours, theirs) in timed.items():
        changes[name] = change_of_medians(ours["values"], theirs["values"], process_spread(spreads[device]))
    own, reference = captured_rate(mine), captured_rate(baseline)
    if own and reference:
        spread = process_spread(spreads[f"{device}_captured"])
        changes["captured_decode_percent"] = change_of_medians(own["values"], reference["values"], spread)
    spread = process_spread(*(decode_spread(record, device, spreads) for record in (mine, baseline)))
    rates = [reachable_rate(record)["values"] for record in (mine, baseline)]
    changes["reachable_decode_percent"] = change_of_medians(rates[0], rates[1], spread)
    return changes


def decode_spread(benchmark: BenchmarkRecord, device: str, spreads: dict[str, float]) -> float:
    """Percent that processes differ by in the rate that a user can reach."""
    return spreads[f"{device}_captured" if captured_rate(benchmark) else device]


def prompts_spread(generation: GenerationRecord, device: str, spreads: dict[str, float]) -> float:
    """Percent that processes differ by in the seconds of prompts; of captured ones, prefill alone may be eager."""
    if generation["decoding"] != "captured":
        return spreads[device]
    check = generation.get("decoding_check")
    by_graphs = check["prompts_read"]["captured"] / generation["prompts"] if check and "prompts_read" in check else 0.0
    eager = (1 - by_graphs) * min(1.0, generation["time_to_first_token_seconds_mean"] / generation["seconds_mean"])
    return eager * spreads[device] + (1 - eager) * spreads[f"{device}_captured"]


def reachable_rate(benchmark: BenchmarkRecord) -> Repeated:
    """Timings of the decoding that a user would choose: captured where it can be, else eager."""
    return captured_rate(benchmark) or benchmark["decode_tokens_per_second"]


def captured_rate(benchmark: BenchmarkRecord) -> Repeated | None:
    """Timings of the captured decode; None where there is none."""
    return benchmark.get("captured", {}).get("decode_tokens_per_second")


def process_spread(percent: float, other: float | None = None) -> float:
    """Half-width in ln of the ratio of two processes' times; percent, other: the standard deviation of each."""
    sides = (percent, percent if other is None else other)
    return 1.96 * math.hypot(*(math.log1p(side / 100) for side in sides))


def change_of_medians(mine: list[float], reference: list[float], spread: float) -> tuple[float, Bounds]:
    """(percent, interval) of the ratio of two medians of repetitions; spread: as process_spread gives it."""
    ratio = float(numpy.median(mine) / numpy.median(reference))
    return in_percent(ratio, medians.median_ratio_interval(mine, reference, spread))


def in_percent(ratio: float, bounds: Bounds) -> tuple[float, Bounds]:
    """A ratio and its interval as a change in percent."""
    return 100 * (ratio - 1), bounds and [100 * (bound - 1) for bound in bounds]
