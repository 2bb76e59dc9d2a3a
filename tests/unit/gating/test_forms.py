"""The budget's lines as text, Markdown and JUnit XML."""

from xml.etree import ElementTree

from quantharm.gating.advice import outcome
from quantharm.gating.forms import junit, markdown, terminal_table
from quantharm.gating.judging import unfinished
from quantharm.gating.limits import Limit
from quantharm.gating.verdicts import Figure, line

BUDGET = {"undecided": "pass", "not_measured": "fail"}
HOSTILE = "a|b <c> & \x1b[31m \u202e"
LEFT_OUT = {
    "model": "other",
    "method": None,
    "stage": "fetch",
    "reason": f"offline {HOSTILE}",
    "log": "x.log",
    "compared": False,
}


def lines(budget=BUDGET):
    limit = Limit("kl_nats", None, 0.05)
    figures = {
        "good": Figure(0.01, [0.005, 0.02], 24, "prompts"),
        "bad": Figure(0.1, [0.08, 0.2], 24, "prompts"),
        "open": Figure(0.05, [0.03, 0.07], 24, "prompts"),
        HOSTILE: Figure(None, missing=f"no {HOSTILE}"),
    }
    made = [line("m", method, limit, figure, budget) for method, figure in figures.items()]
    made.append(line("m", "good", Limit("category_kl_nats", "Translation", 0.1), Figure(0.02, [0.01, 0.03]), budget))
    return made + unfinished([LEFT_OUT, LEFT_OUT | {"method": "nf4", "compared": True}], budget)


def test_junit_says_what_fails_what_is_let_pass_and_what_passes():
    root = ElementTree.fromstring(junit(lines()))
    first, second = root.findall("testsuite")
    assert dict(first.attrib) == {"name": "m", "tests": "5", "failures": "2", "errors": "0", "skipped": "1"}
    assert second.get("failures") == "1"
    by_class = {case.get("classname"): case for case in first if case.get("name").startswith("mean KL ≤")}
    assert by_class["m × good"].find("failure") is None
    assert "0.0100 nats [0.00500, 0.0200] over 24 prompts" in by_class["m × good"].find("system-out").text
    assert by_class["m × bad"].find("failure").get("type") == "breach"
    assert "the interval holds the limit" in by_class["m × open"].find("skipped").get("message")
    assert [case.get("name") for case in first if "Translation" in case.get("name")] == [
        "mean KL in Translation ≤ 0.100 nats"
    ]
    assert "stage fetch failed: offline" in second.find("testcase/failure").text


def test_what_is_not_known_fails_where_the_config_says_so():
    strict = ElementTree.fromstring(junit(lines({"undecided": "fail", "not_measured": "pass"})))
    assert strict.find("testsuite").attrib["failures"] == "2"  # the breach, the undecided
    assert strict.find("testsuite").attrib["skipped"] == "1"


def test_nothing_in_a_name_is_markup_or_commands_a_terminal():
    text, table = terminal_table(lines()), markdown(False, "no", lines(), [])
    for shown in (text, table, junit(lines())):
        assert "\x1b" not in shown
        assert "\u202e" not in shown
    row = next(x for x in table.splitlines() if "a\\|b" in x)
    assert row.replace("\\|", "").count("|") == 8
    assert "\\<c\\>" in row
    assert text.splitlines()[0].split()[:2] == ["Model", "Method"]


def test_the_outcome_counts_every_verdict_and_names_what_fails():
    passed, sentence = outcome(lines())
    assert not passed
    assert "m × bad" in sentence
    assert "other" in sentence
    assert "m × open" not in sentence
    assert "2 pass, 1 breach, 1 undecided, 2 not measured" in sentence
    assert outcome([entry for entry in lines() if entry["accepted"]]) == (
        True,
        "The gate passes: 3 limits (2 pass, 1 undecided).",
    )
