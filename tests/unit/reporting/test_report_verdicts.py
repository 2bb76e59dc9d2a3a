"""Words from numbers: the rules of the report's verdicts, at their limits."""

from types import SimpleNamespace

import pytest

from quantharm.report import default_thresholds
from quantharm.reporting.assessment import harm_in_a_sentence
from quantharm.reporting.change_verdicts import change_verdict, speed_verdict, unsteadiness
from quantharm.reporting.judgement import believed
from quantharm.reporting.limit_verdicts import largest, risk_verdict, within
from quantharm.reporting.results import other_hardware_kl
from quantharm.reporting.verdicts import (
    Verdict,
    harm_verdict,
    kl_verdict,
    level_of,
    other_hardware_percent,
    perplexity_verdict,
)

KL = {"negligible": 0.01, "low": 0.05, "moderate": 0.1}
CHANGE = {"negligible": 1.0, "low": 5.0, "moderate": 10.0}


@pytest.mark.parametrize(
    ("value", "level"),
    [
        (0, "negligible"),
        (0.00999, "negligible"),
        (0.01, "low"),
        (0.05, "moderate"),
        (0.0999, "moderate"),
        (0.1, "high"),
    ],
)
def test_levels_begin_at_their_limits(value, level):
    assert level_of(value, KL) == level


@pytest.mark.parametrize("bounds", [[-0.1, 0.3], [0.0, 0.3], [-0.3, 0.0], [-9.0, 0.99]])
def test_an_interval_that_holds_zero_is_no_measurable_change(bounds):
    verdict = perplexity_verdict(0.1, bounds, CHANGE)
    assert (verdict.level, verdict.words) == ("none", "no measurable change")


@pytest.mark.parametrize(
    ("bounds", "high"), [([-0.5, 1.0], "low"), ([-2.0, 5.0], "moderate"), ([-2.0, 14.0], "high"), ([0.0, 10.0], "high")]
)
def test_an_interval_that_holds_zero_keeps_its_upper_end(bounds, high):
    verdict = perplexity_verdict(0.9, bounds, CHANGE)
    assert (verdict.level, verdict.span) == ("undecided", ("none", high))
    assert verdict.words == f"no measurable change, but the interval reaches {high}"
    harm = harm_verdict(verdict, kl_verdict(0.005, [0.004, 0.006], 0, 10, KL), [])
    assert harm.span == ("negligible", high)
    unmeasured = harm_verdict(verdict, kl_verdict(0.0, [0.0, 0.0], 0, 10, KL), [])
    assert unmeasured.level == ("low" if high == "low" else "undecided")


def test_a_change_that_other_hardware_explains_is_no_verdict():
    words = "no change beyond differences between processors"
    assert perplexity_verdict(0.08, [0.004, 0.16], CHANGE, floor=0.06).words == words
    assert perplexity_verdict(0.08, [0.06, 0.16], CHANGE, floor=0.06).words == words
    assert perplexity_verdict(0.08, [0.061, 0.16], CHANGE, floor=0.06).words == "negligible"
    assert perplexity_verdict(-0.05, [-0.06, -0.04], CHANGE, floor=0.06).words == words
    assert perplexity_verdict(-0.1, [-0.14, -0.07], CHANGE, floor=0.06).words.startswith("measurably lower")
    assert "0.060" in perplexity_verdict(0.08, [0.004, 0.16], CHANGE, floor=0.06).rule
    assert perplexity_verdict(1.5, [0.01, 3.0], CHANGE, floor=0.06).words == f"{words}, but the interval reaches low"


def test_change_of_perplexity_that_other_hardware_explains():
    # Measured between AVX-512 and AVX2: KL 4.6e-4 and a standard deviation of 0.092 % over 20 windows of 1,023 tokens.
    assert other_hardware_percent(4.6e-4, 20 * 1023) == pytest.approx(2 * 1.96 * 0.092 / 20**0.5 / 2**0.5, rel=0.1)
    assert other_hardware_percent(5e-4, 10**9) == pytest.approx(0.05)
    assert other_hardware_percent(0.0, 1000) == 0.0


def test_kl_that_other_hardware_explains_is_no_verdict():
    words = "within differences between processors: says nothing about quality"
    assert kl_verdict(3e-4, [2e-4, 4e-4], 1e-9, 10, KL, 5e-4).words == words
    assert kl_verdict(5e-4, [2e-4, 9e-4], 1e-9, 10, KL, 5e-4).words == words
    assert kl_verdict(3e-4, [1e-4, 0.02], 1e-9, 10, KL, 5e-4).words == f"{words}, but the interval reaches low"
    assert kl_verdict(3e-4, None, 1e-9, 10, KL, 5e-4).span == ("none", "none")
    assert kl_verdict(6e-4, [5.5e-4, 7e-4], 1e-9, 10, KL, 5e-4).words == "negligible"
    assert kl_verdict(0.02, [4e-4, 0.06], 1e-9, 10, KL, 5e-4).words == "low, interval none to moderate"


def test_perplexity_says_its_figure_interval_and_rule():
    verdict = perplexity_verdict(2.68, [2.1, 3.2], CHANGE)
    assert verdict.words == "low"
    assert verdict.figure.replace("\u00a0", " ") == "+2.68 % [+2.10 %, +3.20 %]"
    assert "1 % to 5 % low" in verdict.rule


def test_an_interval_across_a_limit_is_said():
    assert perplexity_verdict(4.7, [4.1, 5.2], CHANGE).words == "low, interval low to moderate"
    assert kl_verdict(0.052, [0.047, 0.058], 1e-7, 10, KL).words == "moderate, interval low to moderate"


def test_a_lower_perplexity_is_no_harm():
    verdict = perplexity_verdict(-0.34, [-0.5, -0.2], CHANGE)
    assert (verdict.level, verdict.words) == ("none", "measurably lower than the baseline's")


def test_without_an_interval_it_says_so():
    verdict = perplexity_verdict(2.0, None, CHANGE)
    assert (verdict.level, verdict.words) == ("undecided", "low, too few windows for an interval")
    other = kl_verdict(0.02, None, 0, 10, KL)
    assert (other.level, other.words) == ("undecided", "low, too few prompts for an interval")
    sure = kl_verdict(0.02, [0.015, 0.03], 0, 10, KL)
    for pair in ((verdict, sure), (perplexity_verdict(2.0, [1.5, 2.5], CHANGE), other)):
        assert harm_verdict(*pair, []).words == "undecided: too few prompts or windows for an interval"


@pytest.mark.parametrize(("kl", "level"), [(9e-7, "none"), (1e-6, "none"), (1.1e-6, "negligible")])
def test_kl_near_the_noise_floor_is_not_quality(kl, level):
    verdict = kl_verdict(kl, [kl, kl], 1e-7, 10, KL)
    assert verdict.level == level
    assert ("noise floor: says nothing" in verdict.words) == (level == "none")


def test_a_method_that_equals_the_baseline_exactly_is_at_the_floor():
    assert kl_verdict(0.0, [0.0, 0.0], 0.0, 10, KL).level == "none"


def test_harm_is_the_worse_of_the_two_at_its_upper_end():
    none = perplexity_verdict(0.1, [-0.1, 0.3], CHANGE)
    low = kl_verdict(0.03, [0.02, 0.04], 0, 10, KL)
    crossing = kl_verdict(0.049, [0.044, 0.054], 0, 10, KL)
    floor = kl_verdict(1e-8, [0, 1e-8], 1e-7, 10, KL)
    high = kl_verdict(2.4, [2.2, 2.6], 0, 10, KL)
    assert harm_verdict(none, floor, []).words == "no measurable harm"
    assert harm_verdict(none, low, []).words == "low harm"
    assert (harm_verdict(none, crossing, []).words, harm_verdict(none, crossing, []).level) == (
        "low to moderate harm",
        "moderate",
    )
    assert harm_verdict(none, high, []).words == "severe harm"


def test_a_failed_check_leaves_no_verdict():
    fine = Verdict("none", "no measurable change", "", "")
    verdict = harm_verdict(fine, fine, ["kernel", "reload"])
    assert (verdict.level, verdict.figure) == ("failed", "failed kernel and reload")


def test_changes_need_an_interval_without_zero():
    assert change_verdict(5.0, [1.0, 9.0], "slower", "faster").words == "slower"
    assert change_verdict(-5.0, [-9.0, -1.0], "slower", "faster").words == "faster"
    assert change_verdict(5.0, [-1.0, 9.0], "slower", "faster").words == "no measurable change"
    assert change_verdict(None, None, "slower", "faster").words == "not measured"
    unknown = change_verdict(5.0, None, "slower", "faster")
    assert (unknown.level, unknown.words) == ("unknown", "not judged: too few values for an interval")


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ([4.0, 4.9], "pass"),
        ([4.0, 5.0], "pass"),
        ([5.1, 6.0], "fail"),
        ([4.0, 5.1], "undecided"),
        ([-9, -6], "fail"),
        ([5.0, 6.0], "undecided"),  # its end is still within
        ([-9, -5], "undecided"),
    ],
)
def test_criteria_judge_the_whole_interval(bounds, words):
    verdict = within("", sum(bounds) / 2, bounds, -5, 5, str, "rule")
    assert verdict.words.startswith(words)


def test_a_figure_that_was_not_measured_neither_passes_nor_fails():
    assert within("", None, None, -5, 5, str, "rule").words == "not measured"


def test_a_figure_without_an_interval_does_not_pass():
    verdict = within("", 1.0, None, -5, 5, str, "rule")
    assert (verdict.level, verdict.words) == ("undecided", "undecided: too few values for an interval")


CATEGORIES = {
    "a": {"kl_nats_mean": 0.004, "ci95": [0.003, 0.005]},
    "b": {"kl_nats_mean": 0.03, "ci95": [0.02, 0.06]},
}


def test_risk_is_that_of_the_worst_category():
    assert risk_verdict(CATEGORIES, ["a"], 0.01, 0.05, []).words == "low"
    assert risk_verdict(CATEGORIES, ["a", "b"], 0.01, 0.05, []).words == "medium, interval medium to high"
    assert risk_verdict(CATEGORIES, ["c"], 0.01, 0.05, []).words == "not measured: c"
    assert risk_verdict(CATEGORIES, ["a", "c"], 0.01, 0.05, []).words == "not measured: c"
    wide = CATEGORIES | {"c": {"kl_nats_mean": 0.002, "ci95": [0.0001, 0.09]}}
    assert risk_verdict(wide, ["a", "c"], 0.01, 0.05, []).words == "low, interval low to high"
    single = CATEGORIES | {"d": {"kl_nats_mean": 0.002, "ci95": None}}
    assert risk_verdict(single, ["a", "d"], 0.01, 0.05, []).level == "undecided"
    assert risk_verdict(CATEGORIES, ["a"], 0.01, 0.05, ["kernel"]).words == "not assessed: failed checks"
    assert largest(CATEGORIES)[0] == "b"
    assert largest({}) is None


def test_an_unsteady_timing_is_not_judged():
    faster = change_verdict(105.7, [1.5, 141.3], "faster", "slower")
    steady, unsteady = {"median": 100.0, "ci95": [95.0, 105.0]}, {"median": 71.8, "ci95": [61.8, 143.0]}
    assert speed_verdict(faster, [steady, steady], 30).words == "faster"
    verdict = speed_verdict(faster, [steady, unsteady], 30)
    assert (verdict.level, verdict.words) == ("unknown", "not judged: unsteady timing (interval 113 % wide)")
    assert unsteadiness({"median": 1.0, "ci95": None}) == 0


def test_default_thresholds_are_the_seeds_scale():
    thresholds = default_thresholds()
    assert thresholds["kl_nats"] == KL
    assert thresholds["perplexity_change_percent"] == CHANGE
    assert thresholds["defense"]["perplexity_change_percent"] == 5
    assert thresholds["defense"]["kl_nats"] == 1.0
    assert len(thresholds["applications"]) == 6


def test_the_stores_own_rounding_counts_where_it_is_larger():
    thresholds = {"other_hardware_kl_nats": {"bfloat16": 5e-4}}
    record = {"store": {"dtype": "bfloat16"}}
    assert other_hardware_kl(record, thresholds) == 5e-4
    record["store"]["hardware_floor"] = {"rounding_kl_nats": 6.6e-4}  # SmolLM2's; other processors gave up to 9.2e-4
    assert other_hardware_kl(record, thresholds) == pytest.approx(1.32e-3)
    record["store"]["hardware_floor"] = {"rounding_kl_nats": None}
    assert other_hardware_kl(record, thresholds) == 5e-4


@pytest.mark.parametrize(
    ("words", "phrase"),
    [
        ("low to moderate harm", "low to moderate harm"),
        ("undecided: too few prompts for an interval", "undecided harm (too few prompts for an interval)"),
        ("not judged: synthetic weights", "unjudged harm (synthetic weights)"),
    ],
)
def test_the_verdict_on_harm_is_a_noun_in_a_sentence(words, phrase):
    assert harm_in_a_sentence(Verdict("", words, "", "")) == phrase


def test_a_cell_that_failed_a_check_gets_no_verdict_and_shows_no_figure():
    verdict = Verdict("low", "low", "0.02 nats", "a rule")
    assert believed(SimpleNamespace(failed=[]), verdict) is verdict
    assert believed(SimpleNamespace(failed=["kernel"]), verdict) == Verdict(
        "failed", "not judged: failed checks", "", ""
    )
