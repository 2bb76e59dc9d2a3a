"""A configuration against its schema: YAML of bounded size, keys that exist, defaults filled in."""

import copy
import difflib
import os
from pathlib import Path
from typing import Any, TypedDict

import jsonschema
import yaml

from quantharm.common.errors import UserError

LARGEST_CONFIG_BYTES = 2**18
MOST_VALUES = 100_000  # of a whole configuration, aliases written out; the shipped one has 300
TEMPLATES = "__use_yte__"  # Snakemake would then run the Python expressions in the file


class Schema(TypedDict, total=False):
    """The keywords of JSON Schema that the configuration's schema and those of the quantizers use."""

    description: str
    type: str | list[str]
    const: object
    enum: list[Any]
    default: Any
    minimum: float
    exclusiveMinimum: float
    maximum: float
    exclusiveMaximum: float
    multipleOf: float
    minLength: int
    pattern: str
    items: "Schema"
    minItems: int
    uniqueItems: bool
    properties: dict[str, "Schema"]
    required: list[str]
    additionalProperties: "bool | Schema"
    minProperties: int


def removed_by_null(key: str) -> str:
    """Added to a message about a key that may come from another config file than the user's."""
    return f"; config files are merged key by key, so what another one sets stays until yours says `{key}: null`"


def takes_null(schema: Schema) -> bool:
    """Whether a schema takes null; one that names neither values nor types does."""
    types = schema.get("type")  # a list, or one word
    if "enum" in schema:
        return None in schema["enum"]
    return types is None or "null" in types


def without_nulls(value: Any, schema: Schema) -> Any:
    """A copy without the keys that are null but cannot be: so a config file removes keys that one before it set."""
    if not isinstance(value, dict):
        return value
    properties = schema.get("properties", {})
    schemas = {key: properties.get(key, schema_of_other(schema)) for key in value}
    return {
        key: without_nulls(item, schemas[key])
        for key, item in value.items()
        if item is not None or takes_null(schemas[key])
    }


def with_defaults(value: Any, schema: Schema) -> Any:
    """A copy of `value` in which every missing key that has a default holds it."""
    if not isinstance(value, dict):
        return value
    properties = schema.get("properties", {})
    completed = {key: with_defaults(item, properties.get(key, schema_of_other(schema))) for key, item in value.items()}
    for key, subschema in properties.items():
        if key not in completed and "default" in subschema:
            completed[key] = with_defaults(copy.deepcopy(subschema["default"]), subschema)
    return completed


def schema_of_other(schema: Schema) -> Schema:
    """The schema of keys that `properties` does not name."""
    other = schema.get("additionalProperties")
    return other if isinstance(other, dict) else {}


def sentence(error: Any) -> str:
    """One sentence for jsonschema's ValidationError: the key, its fault, and the remedy."""
    where = ".".join(str(part) for part in error.absolute_path)
    at = f"`{where}` in the config" if where else "the config"
    if error.validator == "additionalProperties":
        known = list(error.schema.get("properties", {}))
        unknown = sorted(set(error.instance) - set(known), key=str)[0]
        close = difflib.get_close_matches(str(unknown), known, 1)
        hint = f"did you mean `{close[0]}`?" if close else f"it takes {', '.join(known)}"
        return f"{at} has a key `{str(unknown)[:80]}` that does not exist; {hint}"
    if error.validator == "required":
        missing = sorted(set(error.validator_value) - set(error.instance))[0]
        return f"{at} lacks the key `{missing}`; add it"
    if error.validator == "enum":
        choices = ", ".join("null" if v is None else str(v) for v in error.validator_value)
        return f"{at} is {error.instance!r}; it must be one of {choices}"
    if error.validator == "type":
        types = error.validator_value
        allowed = " or ".join(types) if isinstance(types, list) else types
        return f"{at} is {str(error.instance)[:80]!r}; it must be of type {allowed}"
    if error.validator == "pattern" and "propertyNames" not in error.absolute_schema_path:
        return f"{at} is {error.instance[:80]!r}; it must be a whole commit: 40 digits of 0-9a-f"
    if "propertyNames" in error.absolute_schema_path:
        return (
            f"the name {str(error.instance)[:80]!r} in {at} is not allowed; names are file names: letters, digits and "
            "._+- (1 to 64, the first a letter or digit)"
        )
    return f"{at}: {error.message[:200]}"


def validate(value: Any, schema: Schema, path: tuple[str, ...] = ()) -> None:
    """Raises UserError with one sentence for the most telling mistake; path: of `value` within the config."""
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(value))
    if error is not None:
        error.path.extendleft(reversed(path))
        raise UserError(sentence(error))


def check_config_file(path: Path) -> None:
    """Raises UserError unless `path` is a small YAML file, before Snakemake reads it or reports that it is missing."""
    if not os.path.isfile(path):
        return
    if os.path.getsize(path) > LARGEST_CONFIG_BYTES:
        raise UserError(f"{path} is larger than {LARGEST_CONFIG_BYTES >> 10} KB, which is no configuration; correct it")
    try:
        text = Path(path).read_text(encoding="utf-8")
        check_values(yaml.compose(text, yaml.SafeLoader), str(path))  # before `<<: [*a, *a]` is written out
        config = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise UserError(f"{path}, line {line}: this is not YAML ({error.problem}); correct the line") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is not YAML ({reason}); correct it, or take the one that is shipped") from None
    if isinstance(config, dict) and TEMPLATES in config:
        raise UserError(f"{path} has the key `{TEMPLATES}`, by which it could run code; take it out")


def check_values(config: object, where: str) -> None:
    """Raises UserError for a configuration of unbounded size: aliases of aliases (a YAML bomb), a list within itself.

    config: YAML nodes, or the lists and dicts made of them.
    """
    waiting: list[object] = [config]
    seen = 0
    while waiting:
        value = waiting.pop()
        seen += 1
        if isinstance(value, yaml.CollectionNode):
            value = value.value  # a list, of pairs where it is a mapping
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set):
            waiting += value
        if seen + len(waiting) > MOST_VALUES:
            raise UserError(
                f"{where} has more than {MOST_VALUES:,} values once its aliases (*name) are written out; write them out"
            )
