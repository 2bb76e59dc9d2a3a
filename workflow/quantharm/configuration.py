"""The workflow's configuration: checked against its schema, completed with defaults, and checked for sense.

Every mistake ends in one sentence before any job starts. Needs only jsonschema and yaml; no ML library.
"""

import copy
import difflib
import importlib
import json
import os
import pkgutil
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from quantharm.architectures import read_architecture
from quantharm.errors import UserError

BASELINE = "baseline"
RESERVED_MODELS = ("logs", "benchmarks", "texts")
RESERVED_METHODS = ("synthetic",)


def quantizer_names() -> list[str]:
    package = importlib.import_module("quantharm.quantizers")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def method_schema(quantizer: str) -> dict[str, Any]:
    """Schema of a method entry: the keys all methods share, and the settings its quantizer declares."""
    settings = importlib.import_module(f"quantharm.quantizers.{quantizer}").SETTINGS
    shared = {
        "quantizer": {"const": quantizer},
        "models": {"type": "array", "items": {"type": "string"}},
        "description": {"type": "string"},
    }
    required = ["quantizer"] + [key for key, value in settings.items() if "default" not in value]
    return {
        "type": "object",
        "properties": settings | shared,
        "required": required,
        "additionalProperties": False,
    }


def with_defaults(value: Any, schema: dict[str, Any]) -> Any:
    """A copy of `value` in which every missing key that has a default holds it."""
    if not isinstance(value, dict):
        return value
    properties = schema.get("properties", {})
    result = {key: with_defaults(item, properties.get(key, schema_of_other(schema))) for key, item in value.items()}
    for key, subschema in properties.items():
        if key not in result and "default" in subschema:
            result[key] = with_defaults(copy.deepcopy(subschema["default"]), subschema)
    return result


def schema_of_other(schema: dict[str, Any]) -> dict[str, Any]:
    other = schema.get("additionalProperties")
    return other if isinstance(other, dict) else {}


def sentence(error: jsonschema.ValidationError) -> str:
    """One sentence for a schema error: which key, what is wrong, what would be right."""
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
        wanted = error.validator_value
        wanted = " or ".join(wanted) if isinstance(wanted, list) else wanted
        return f"{at} is {str(error.instance)[:80]!r}; it must be of type {wanted}"
    if error.validator == "pattern" and "propertyNames" not in error.absolute_schema_path:
        return f"{at} is {error.instance[:80]!r}; it must be a whole commit: 40 digits of 0-9a-f"
    if "propertyNames" in error.absolute_schema_path:
        return (
            f"the name {str(error.instance)[:80]!r} in {at} is not allowed; names are file names: letters, digits and "
            "._+- (1 to 64, the first a letter or digit)"
        )
    return f"{at}: {error.message[:200]}"


def validate(value: Any, schema: dict[str, Any], path: tuple = ()) -> None:
    """Raises UserError with one sentence for the most telling error."""
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(value))
    if error is not None:
        error.path.extendleft(reversed(path))
        raise UserError(sentence(error))


def complete(config: dict[str, Any], schema_path: Path) -> dict[str, Any]:
    """The configuration with all defaults; raises UserError for the first mistake."""
    schema = yaml.safe_load(Path(schema_path).read_text(encoding="utf-8"))
    config = json.loads(json.dumps(config, default=str))  # plain dicts and lists
    validate(config, schema)
    config = with_defaults(config, schema)
    for name, method in config["methods"].items():
        known = quantizer_names()
        if method["quantizer"] not in known:
            raise UserError(
                f"`methods.{name}.quantizer` in the config is {method['quantizer']!r}; it must be one of "
                f"{', '.join(known)} (a module in workflow/quantharm/quantizers)"
            )
        own = method_schema(method["quantizer"])
        validate(method, own, ("methods", name))
        config["methods"][name] = with_defaults(method, own)
    check_names(config)
    for name in config["models"]:
        check_model(config, name)
    return config


def check_names(config: dict[str, Any]) -> None:
    """Every name that the configuration refers to exists in it."""
    baseline = config["methods"].get(BASELINE)
    if baseline is None or baseline["quantizer"] != "unquantized":
        raise UserError("`methods.baseline` in the config must exist, with `quantizer: unquantized`")
    if BASELINE not in config["evaluate"]["methods"]:
        raise UserError(
            "`evaluate.methods` in the config lacks `baseline`, which every method is compared with; add it"
        )
    for reserved in set(RESERVED_MODELS) & set(config["models"]):
        raise UserError(f"a model in the config is called `{reserved}`, which is a folder of the workflow; rename it")

    for reserved in set(RESERVED_METHODS) & set(config["methods"]):
        raise UserError(f"a method in the config is called `{reserved}`, which is a folder of the workflow; rename it")

    def refer(kind: str, name: str, where: str) -> None:
        if name not in config[kind]:
            close = difflib.get_close_matches(name, list(config[kind]), 1)
            hint = f"did you mean `{close[0]}`?" if close else f"there are {', '.join(config[kind])}"
            raise UserError(f"`{where}` in the config names `{name}`, which is not under `{kind}`; {hint}")

    for kind in ("models", "methods"):
        for name in config["evaluate"][kind]:
            refer(kind, name, f"evaluate.{kind}")
    for name, model in config["models"].items():
        refer("protocols", model["protocol"], f"models.{name}.protocol")
    for name, protocol in config["protocols"].items():
        refer("texts", protocol["text"], f"protocols.{name}.text")
    for name, method in config["methods"].items():
        for model in method.get("models", []):
            refer("models", model, f"methods.{name}.models")
    for name, text in config["texts"].items():
        if ("path" in text) == ("dataset" in text):
            raise UserError(f"`texts.{name}` in the config needs either `path` or `dataset`")


def checkpoint_config(source: str) -> dict[str, Any] | None:
    """config.json of a model that is a folder here; None for a hub id, which is checked once it is fetched."""
    path = Path(source) / "config.json"
    try:
        # os.path, because a name that no file can have is no file there, while pathlib raises OSError
        return json.loads(path.read_text(encoding="utf-8")) if os.path.isfile(path) else None
    except ValueError:
        raise UserError(f"{path} is damaged: it is not JSON; fetch the model again") from None


def check_model(config: dict[str, Any], name: str) -> None:
    """A local model exists, and every method that would be applied to it can be."""
    model = config["models"][name]
    source = model["source"]
    if isinstance(source, dict):
        check_synthetic(config, name)
        return
    settings = checkpoint_config(source)
    if settings is None:
        if os.path.exists(source) or source.startswith((".", "/")) or source.count("/") != 1:
            raise UserError(
                f"`models.{name}.source` in the config is {source!r}, which is no folder with a config.json"
            )
        if not model.get("revision"):
            raise UserError(f"`models.{name}.revision` in the config is missing: pin the hub model to a commit")
        return
    if config["protocols"][model["protocol"]]["chat_template"] == "required" and not has_chat_template(Path(source)):
        raise UserError(
            f"protocol `{model['protocol']}` requires a chat template but the model `{name}` has none; use "
            "`chat_template: auto` or another model"
        )
    for method in methods_of(config, name):
        check_method(method, config["methods"][method], name, settings)


def check_synthetic(config: dict[str, Any], name: str) -> None:
    """The shape is known, every method can be applied to it, and no chat template is asked for."""
    model = config["models"][name]
    try:
        settings = read_architecture(model["source"]["architecture"])
    except UserError as error:
        raise UserError(f"`models.{name}.source.architecture` in the config: {error}") from None
    if model.get("revision"):
        raise UserError(f"`models.{name}.revision` in the config is for hub models; remove it")
    if config["protocols"][model["protocol"]]["chat_template"] == "required":
        raise UserError(
            f"protocol `{model['protocol']}` requires a chat template but the model `{name}` is made of random "
            "weights and has none; use `chat_template: auto`"
        )
    for method in methods_of(config, name):
        check_method(method, config["methods"][method], name, settings)


def check_method(method: str, entry: dict[str, Any], model: str, settings: dict[str, Any]) -> None:
    quantizer = importlib.import_module(f"quantharm.quantizers.{entry['quantizer']}")
    conflict = getattr(quantizer, "conflict", lambda *_: None)(entry, settings)
    if conflict:
        raise UserError(f"method `{method}` cannot be applied to model `{model}`: {conflict}")


def has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file():
        return True
    path = folder / "tokenizer_config.json"
    try:
        return path.is_file() and bool(json.loads(path.read_text(encoding="utf-8")).get("chat_template"))
    except ValueError:
        raise UserError(f"{path} is damaged: it is not JSON; fetch the model again") from None


def methods_of(config: dict[str, Any], model: str) -> list[str]:
    """Methods of the default run that apply to a model, the baseline first."""
    chosen = [m for m in config["evaluate"]["methods"] if model in config["methods"][m].get("models", [model])]
    return sorted(chosen, key=lambda m: m != BASELINE)


def settings_of(config: dict[str, Any], method: str) -> dict[str, Any]:
    """A method's settings alone: what its quantizer is given and what a change of recomputes."""
    entry = config["methods"][method]
    return {key: value for key, value in entry.items() if key not in ("quantizer", "models", "description")}
