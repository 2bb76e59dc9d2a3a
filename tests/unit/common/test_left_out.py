"""Why a cell is left out: read off logs, and spread from a baseline to the cells that need it."""

import os

import pytest

from quantharm.common.left_out import LeftOut, line, name, reason_in, sentence, without_baseline


def entry(method: str | None, **given) -> LeftOut:
    defaults = {"model": "m", "method": method, "stage": "quantize", "reason": "why", "log": "a.log", "compared": False}
    return LeftOut(defaults | given)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("loading: 3/3\nerror: the disk is full; free some space\n", "the disk is full; free some space"),
        ("Traceback (most recent call last):\n  File x\nKeyError: 'method'\n\n", "KeyError: 'method'"),
        ("", "its job ended without a word, as it does when it is killed or out of memory or time"),
        ("error: " + "x" * 5000, "x" * 600),
    ],
)
def test_the_reason_is_the_last_line_of_the_log(tmp_path, text, reason):
    (tmp_path / "a.log").write_text(text, encoding="utf-8")
    assert reason_in(tmp_path / "a.log", 0.0) == reason


def test_the_log_of_an_earlier_run_says_nothing_of_this_one(tmp_path):
    log = tmp_path / "a.log"
    log.write_text("error: the disk was full", encoding="utf-8")
    os.utime(log, (1000, 1000))
    assert reason_in(log, 2000.0) == reason_in(tmp_path / "none.log", 0.0) == "its job ended before the stage began"
    assert reason_in(log, 999.0) == "the disk was full"


def test_without_a_baseline_no_cell_can_be_compared():
    broken = [entry("baseline"), entry("int8", reason="own"), entry("nf4", compared=True), entry("awq", model="n")]
    entries = without_baseline(broken, "m", ["baseline", "int8", "nf4", "awq"])
    of_model = {e["method"]: e["reason"] for e in entries if e["model"] == "m"}
    needs = "it has no baseline to be compared with: why"
    assert of_model == {"baseline": "why", "int8": "own", "nf4": needs, "awq": needs}
    assert len(entries) == 5  # the other model's entry stays
    assert not any(e["compared"] for e in entries)


@pytest.mark.parametrize(
    "left_out", [[], [entry("int8")], [entry("baseline", compared=True)], [entry("baseline", model="n")]]
)
def test_with_a_baseline_the_others_stay(left_out):
    assert without_baseline(left_out, "m", ["baseline", "int8"]) == left_out


def test_words():
    assert name(entry("nf4")) == "m × nf4"
    assert name(entry(None)) == "m"
    assert sentence(entry("nf4")) == "stage quantize failed: why"
    assert sentence(entry("nf4", log=None)) == "stage quantize was not run: why"
    assert sentence(entry("nf4", compared=True)) == "its integrity is missing: stage quantize failed: why"


def test_the_log_is_named_where_there_is_one():
    assert line(entry("nf4")) == "m × nf4: stage quantize failed: why (a.log)"
    assert line(entry("nf4", log=None)) == "m × nf4: stage quantize was not run: why"
