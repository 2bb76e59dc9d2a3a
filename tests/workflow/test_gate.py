"""`snakemake gate`: what it says, how it ends, and what it leaves."""

import json
import re
from xml.etree import ElementTree

import pytest
from workflow_project import ALL_REPORT, FAIL, REPORT, Project

GATE = ("the budget", "the gate: see results/gate/budget.md")


def gate(project: Project):
    return project.snakemake("gate", "--quiet", "host", "reason")


def budget(project: Project) -> dict:
    return json.loads((project / "results/gate/budget.json").read_text(encoding="utf-8"))


def test_without_a_limit_nothing_is_run(finished):
    result = finished.snakemake("gate")
    assert result.code != 0
    assert "`budget:` in the config limits nothing" in result.output
    assert "perplexity" not in result.output
    assert "Traceback" not in result.output
    assert not (finished / "results/gate").exists()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kl_nat": 1}, "did you mean `kl_nats`?"),
        ({"kl_nats": -1}, "`budget.kl_nats` in the config"),
        ({"undecided": "maybe"}, "it must be one of pass, fail"),
        ({"methods": {"nf5": {"kl_nats": 1}}}, "did you mean `nf4`?"),
        ({"methods": {"nf4": {"prefer": "fastest"}}}, "`budget.methods.nf4` in the config has a key `prefer`"),
        ({"against": "nowhere"}, "'nowhere', which is not here"),
    ],
)
def test_mistakes_end_before_any_job(small, entry, message):
    small.edit("budget", entry)
    result = small.snakemake("gate", "--dry-run")
    assert result.code != 0
    assert message in result.output
    assert "Traceback" not in result.output


def test_a_breach_fails_and_leaves_every_file(finished):
    finished.edit("budget", {"kl_nats": 5, "methods": {"nf4": {"compression": 1000}}, "checks": True})
    result = gate(finished)
    assert result.code != 0
    assert "error: The gate fails for reference × nf4: " in result.output
    assert re.search(r"reference +nf4 +compression +\d\.\d\d× +≥ 1,000\.00× +– +breach", result.output)
    record = budget(finished)
    assert not record["passed"]
    assert [e["method"] for e in record["lines"] if e["verdict"] == "breach"] == ["nf4"]
    root = ElementTree.parse(finished / "results/gate/junit.xml").getroot()
    assert root.find("testsuite").get("failures") == "1"
    assert "# Budget: FAILED" in (finished / "results/gate/budget.md").read_text(encoding="utf-8")
    assert finished.jobs() == {REPORT, ALL_REPORT}  # nothing of the run was lost; its report has the budget to tell
    assert finished.jobs("gate") == {GATE[1]}  # the next call asks again, and judges nothing again

    finished.edit("budget/methods", {})
    assert finished.jobs("gate") == set(GATE)
    passed = gate(finished)
    assert passed.code == 0, passed.output[-3000:]
    assert "The gate passes: " in passed.output
    assert budget(finished)["passed"]


def test_an_equal_method_passes_and_badly_calibrated_ones_fail(finished):
    """A copy of the baseline under another name, and AWQ calibrated on one repeated token."""
    bad = finished.config()["methods"]["awq"] | {"calibration_corruption": "repeated_token"}
    finished.edit("methods/same", {"quantizer": "unquantized"})
    finished.edit("methods/bad", bad)
    finished.edit("evaluate/methods", ["baseline", "same", "bad"])
    finished.edit("on_failed_check", "report")
    limits = {"text_kl_nats": 0.001, "perplexity_change_percent": 1, "checks": True, "integrity": True}
    finished.edit("budget", limits)
    result = gate(finished)
    assert result.code != 0
    lines = {(e["method"], e["limit"]): e["verdict"] for e in budget(finished)["lines"]}
    assert {verdict for (method, _), verdict in lines.items() if method == "same"} == {"pass"}
    assert lines["bad", "checks"] == "breach"
    assert lines["bad", "text_kl_nats"] == "not measured"  # its figures are not to be believed
    advice = budget(finished)["advice"][0]
    assert (advice["ship"], advice["within"]) == ("same", ["same"])


def test_a_cell_that_was_not_finished_is_a_line_of_the_gate(finished):
    finished.edit("budget", {"kl_nats": 5})
    for name in ("int8/perplexity.json", "summary.json"):
        finished.path(name).unlink()
    (finished / FAIL).write_text("quantharm.perplexity --quantization results/reference/int8", encoding="utf-8")
    assert gate(finished).code != 0
    line = budget(finished)["lines"][-1]
    assert (line["method"], line["verdict"]) == ("int8", "not measured")
    assert "stage perplexity failed: made to fail" in line["reason"]
    (finished / FAIL).unlink()
    assert gate(finished).code == 0


def test_every_method_of_the_default_run_gets_a_card(finished):
    cards = {f"reference × {method}: card" for method in ("int8", "nf4", "awq")}
    assert finished.jobs("cards") == cards
    finished.run("cards")
    for method in ("int8", "nf4", "awq"):
        assert "model-index:" in finished.path(f"{method}/card.md").read_text(encoding="utf-8")
        assert finished.path(f"{method}/card.svg").read_text(encoding="utf-8").startswith("<svg")
    assert finished.jobs("cards") == set()
    assert finished.jobs() == set()
