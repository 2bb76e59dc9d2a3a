"""docs/gate.md: its examples are budgets that the schema takes, and its table names every limit."""

import re

import pytest
import yaml
from budgets import budget_schema, default_budget

from quantharm.config.validation import validate
from quantharm.gating.limits import KINDS, has_limits


@pytest.fixture(scope="module")
def page(root) -> str:
    return (root / "docs" / "gate.md").read_text(encoding="utf-8")


def examples(page: str) -> list[dict]:
    return [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]


def test_every_budget_of_the_page_is_one(page):
    budgets = [example["budget"] for example in examples(page) if "budget" in example]
    assert len(budgets) == 3
    for budget in budgets:
        validate(budget, budget_schema())
        assert has_limits(default_budget() | budget)


def test_the_workflow_of_the_page_runs_the_gate_and_shows_its_files_also_when_it_fails(page):
    (workflow,) = [example for example in examples(page) if "jobs" in example]
    steps = workflow["jobs"]["gate"]["steps"]
    (gate,) = [i for i, step in enumerate(steps) if "snakemake gate" in step.get("run", "")]
    assert all(step["if"] == "always()" for step in steps[gate + 1 :])
    assert "results/gate/budget.md" in steps[gate + 1]["run"]


def test_the_table_of_limits_names_all(page):
    table = "".join(line for line in page.splitlines() if line.startswith("| `"))
    assert {key for key in KINDS if f"`{key}`" not in table} == set()
