"""The schema of the config's `budget:` and its defaults."""

from pathlib import Path

import yaml

from quantharm.config.validation import with_defaults

SCHEMA = Path(__file__).parents[3] / "workflow" / "schemas" / "config.schema.yaml"


def budget_schema() -> dict:
    return yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))["properties"]["budget"]


def default_budget() -> dict:
    return with_defaults({}, budget_schema())
