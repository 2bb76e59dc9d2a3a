"""Worse than an earlier run: independent figures by MOVER, paired ones prompt by prompt and window by window."""

import math
from pathlib import Path

import numpy
import pytest
from scipy.stats import norm

from quantharm.common.statistics import mean_interval, positive_interval
from quantharm.config.engines import NO_WEIGHTS
from quantharm.gating.earlier import Earlier, differences
from quantharm.gating.verdicts import Figure
from quantharm.gating.worsening import independent_difference, more_bytes, rate_ratio
from quantharm.reporting.results import Cell

ROW = {
    "perplexity_protocol": "concat-2048",
    "text_tokens_sha256": "a",
    "prompt_tokens_sha256": "b",
    "max_new_tokens": 100,
    "benchmark_prompt_tokens": 256,
    "benchmark_new_tokens": 64,
    "device": "NVIDIA H200",
    "dtype": "bfloat16",
    "compute_dtype": "bfloat16",
    "instruction_set": None,
    "onednn_instruction_set": None,
    "compute_capability": ["9.0"],
    "tf32": False,
}


def test_of_normal_figures_the_interval_is_that_of_their_difference():
    half = norm.ppf(0.975)
    bounds = independent_difference(5.0, [5 - half * 3, 5 + half * 3], 1.0, [1 - half * 4, 1 + half * 4])
    assert bounds[0] == 4.0
    assert bounds[1] == pytest.approx([4 - half * 5, 4 + half * 5])
    assert independent_difference(5.0, None, 1.0, [0.0, 2.0]) == (4.0, None)


def test_the_interval_of_a_difference_of_skewed_means_covers():
    """Two runs of log-normal prompt means, twelve categories of two, independent; paired ones are narrower."""
    random = numpy.random.default_rng(3)
    a, b = (numpy.exp(0.7 * random.normal(size=(12, 3_000, 2))) for _ in range(2))
    bounds = [positive_interval(list(values)) for values in (a, b)]
    means = [values.mean((0, 2)) for values in (a, b)]
    covered = []
    for i in range(a.shape[1]):
        sides = [(float(m[i]), [float(low[i]), float(high[i])]) for m, (low, high) in zip(means, bounds, strict=True)]
        _, (low, high) = independent_difference(*sides[0], *sides[1])
        covered.append(low <= 0 <= high)
    assert numpy.mean(covered) >= 0.93
    paired = mean_interval(list(a[:, 0] * 1.01 - a[:, 0]))
    assert paired[1] - paired[0] < 0.1 * (bounds[0][1][0] - bounds[0][0][0])


@pytest.mark.parametrize("key", ["perplexity_change_percent", "kl_nats", "decode_rate_ratio"])
def test_what_was_measured_or_computed_in_another_way_is_not_compared(key):
    assert differences(ROW, dict(ROW), key) == []
    own = {
        "perplexity_change_percent": {"perplexity_protocol": "concat-512", "text_tokens_sha256": "x"},
        "kl_nats": {"prompt_tokens_sha256": "x", "max_new_tokens": 32},
        "decode_rate_ratio": {"benchmark_prompt_tokens": 128, "benchmark_new_tokens": 32},
    }
    for figure, changes in own.items():
        for name, value in changes.items():
            assert differences(ROW, ROW | {name: value}, key) == ([name] if figure == key else [])
    for name, value in {"device": "NVIDIA L4", "compute_dtype": "float32", "tf32": True}.items():
        assert differences(ROW, ROW | {name: value}, key) == [name]
    assert differences(ROW, {k: v for k, v in ROW.items() if k != "compute_capability"}, key) == ["compute_capability"]


def test_the_ratio_of_two_rates_counts_both_intervals_and_the_spread_of_processes():
    mine = {"decode_median": 200.0, "decode_ci95": [190.0, 210.0]}
    reference = {"decode_median": 100.0, "decode_ci95": [98.0, 103.0]}
    value, (low, high) = rate_ratio(mine, reference, "decode", 0.1)
    assert value == pytest.approx(math.log(2))
    down = math.sqrt(math.log(200 / 190) ** 2 + math.log(103 / 100) ** 2 + 0.1**2)
    up = math.sqrt(math.log(210 / 200) ** 2 + math.log(100 / 98) ** 2 + 0.1**2)
    assert (low, high) == pytest.approx((math.log(2) - down, math.log(2) + up))
    assert rate_ratio({"decode_median": 2.0}, reference, "decode", 0.1)[1] is None


def test_weights_that_were_not_seen_then_are_not_compared():
    now = Cell("nf4", {"weight_bytes": 90}, {}, {}, {}, {}, {"failed": []}, None, Path())
    earlier = Earlier({"nf4": {"weight_bytes": 100}}, Path())
    assert more_bytes(now, None, earlier).value == pytest.approx(-0.1)
    earlier.rows["nf4"]["weight_bytes"] = None
    assert more_bytes(now, None, earlier) == Figure(None, missing=NO_WEIGHTS)
