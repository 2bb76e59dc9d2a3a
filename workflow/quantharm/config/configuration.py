"""The workflow's configuration: checked against its schema, completed with defaults, and checked for sense.

Every mistake ends in one sentence before any job starts. Needs only jsonschema and yaml; no ML library.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import yaml

from quantharm.common.constants import BASELINE
from quantharm.common.errors import UserError
from quantharm.config.derived_methods import add_derived_methods
from quantharm.config.engines import with_quantizer
from quantharm.config.entries import Configuration
from quantharm.config.methods import completed_method, quantizer_names
from quantharm.config.named_files import check_earlier_run, check_files, check_python
from quantharm.config.names import check_names
from quantharm.config.sources import check_model, check_pretrained
from quantharm.config.tasks import check_tasks
from quantharm.config.validation import Schema, check_values, removed_by_null, validate, with_defaults, without_nulls


def complete(config: Mapping[str, object], schema_path: Path) -> Configuration:
    """The configuration with all defaults; raises UserError for the first mistake."""
    schema = yaml.safe_load(Path(schema_path).read_text(encoding="utf-8"))
    check_values(config, "the config")
    completed = completed_sections(config, schema)
    complete_methods(completed)
    check_baseline(completed)
    add_derived_methods(completed)
    choose_monitored(completed)
    check_names(completed)
    check_texts(completed)
    check_earlier_run(completed)
    check_files(completed)
    check_tasks(completed)
    check_python(completed["python"])
    for name in completed["models"]:
        check_model(completed, name)
    for name, method in completed["methods"].items():
        if method["quantizer"] == "pretrained":
            check_pretrained(completed, name)
    return completed


def completed_sections(config: Mapping[str, object], schema: Schema) -> Configuration:
    """A copy that agrees with the schema and has its defaults; methods are as the file has them."""
    given = without_nulls(json.loads(json.dumps(config, default=str)), schema)  # plain dicts and lists
    if isinstance(given.get("methods"), dict):
        named = given["methods"].items()
        given["methods"] = {name: with_quantizer(m) if isinstance(m, dict) else m for name, m in named}
    validate(given, schema)
    return with_defaults(given, schema)


def complete_methods(config: Configuration) -> None:
    """Gives every method its quantizer's defaults; raises UserError for a quantizer that does not exist."""
    known = quantizer_names()
    for name, method in config["methods"].items():
        if method["quantizer"] not in known:
            raise UserError(
                f"`methods.{name}.quantizer` in the config is {method['quantizer']!r}; it must be one of "
                f"{', '.join(known)} (a module in workflow/quantharm/quantizers)"
            )
        config["methods"][name] = completed_method(name, method)


def check_baseline(config: Configuration) -> None:
    """Raises UserError unless there is a baseline, unquantized and without noise."""
    baseline = config["methods"].get(BASELINE)
    if baseline is None or baseline["quantizer"] != "unquantized" or "noise" in baseline:
        raise UserError("`methods.baseline` in the config must exist, with `quantizer: unquantized` and without noise")


def choose_monitored(config: Configuration) -> None:
    """Fills in the model and the method that `monitor:` leaves to the default run."""
    monitor, evaluate = config["monitor"], config["evaluate"]
    others = [method for method in evaluate["methods"] if method != BASELINE]
    monitor["model"] = evaluate["models"][0] if monitor["model"] is None else monitor["model"]
    monitor["method"] = (others or [BASELINE])[0] if monitor["method"] is None else monitor["method"]


def check_texts(config: Configuration) -> None:
    """Raises UserError for a text with both a file and a data set, or with neither."""
    for name, text in config["texts"].items():
        if ("path" in text) == ("dataset" in text):
            remedy = removed_by_null("path") if "path" in text else ""
            raise UserError(f"`texts.{name}` in the config needs either `path` or `dataset`{remedy}")
