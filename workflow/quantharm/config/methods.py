"""Methods of a configuration: their quantizers, the settings that those declare, the models that they apply to."""

import re
from pathlib import Path

from quantharm import quantizers
from quantharm.common.checkpoint_files import CheckpointConfig
from quantharm.common.constants import BASELINE
from quantharm.common.errors import UserError
from quantharm.common.records.quantization import Settings
from quantharm.config import engines, noise
from quantharm.config.entries import Configuration
from quantharm.config.validation import Schema, removed_by_null, takes_null, validate, with_defaults
from quantharm.quantizers import NeedsPackages, RefusesConfigs, quantizer_named


def quantizer_names() -> list[str]:
    """The modules of the room `quantizers` that declare settings; its other modules hold code that those share."""
    folder = Path(quantizers.__path__[0])
    declares = re.compile(r"^SETTINGS\b", re.MULTILINE)
    return sorted(p.stem for p in folder.glob("*.py") if declares.search(p.read_text(encoding="utf-8")))


def method_schema(quantizer: str) -> Schema:
    """Schema of a method entry: the keys all methods share, and the settings its quantizer declares."""
    settings = quantizer_named(quantizer).SETTINGS
    shared: dict[str, Schema] = {
        "quantizer": {"const": quantizer},
        "models": {"type": "array", "items": {"type": "string"}},
        "description": {"type": "string"},
        "noise": noise.SCHEMA,
        "engine": engines.ENGINE,
        "kv_cache": engines.KV_CACHE,
    }
    required = ["quantizer"] + [key for key, value in settings.items() if "default" not in value]
    return {
        "type": "object",
        "properties": settings | shared,
        "required": required,
        "additionalProperties": False,
    }


def settings_of_quantizers() -> set[str]:
    """The keys that any quantizer declares."""
    modules = [quantizer_named(name) for name in quantizer_names()]
    return {key for module in modules for key in module.SETTINGS}


def completed_method(name: str, method: Settings) -> Settings:
    """A method's entry with its quantizer's defaults; raises UserError where the quantizer does not take it."""
    quantizer = method["quantizer"]
    schema = method_schema(quantizer)
    foreign = [key for key in method if key not in schema["properties"] and key in settings_of_quantizers()]
    for key in foreign:
        if method[key] is not None:
            raise UserError(
                f"`methods.{name}` in the config has `{key}`, which quantizer `{quantizer}` does not take"
                + removed_by_null(key)
            )
    method = {
        key: value
        for key, value in method.items()
        if key not in foreign and (value is not None or takes_null(schema["properties"].get(key, {})))
    }
    validate(method, schema, ("methods", name))
    method = noise.one_spelling(with_defaults(method, schema))
    conflict = noise.conflict(method["quantizer"], method) if "noise" in method else None
    if conflict:
        raise UserError(f"method `{name}` in the config cannot {conflict}{removed_by_null('noise')}")
    if conflict := engines.conflict(quantizer, method):
        raise UserError(f"method `{name}` in the config cannot {conflict}")
    return method


def own_grid(config: Configuration, method: str) -> str | None:
    """The grid that a method rounds weights to; None where it rounds to none."""
    entry = config["methods"][method]
    return noise.grid_of(entry["quantizer"], entry | {"noise": {}})


def check_method(method: str, entry: Settings, model: str, settings: CheckpointConfig) -> None:
    """Raises UserError where a method cannot be applied to a model of that config.json."""
    quantizer = quantizer_named(entry["quantizer"])
    conflict = quantizer.conflict(entry, settings) if isinstance(quantizer, RefusesConfigs) else None
    if conflict:
        raise UserError(f"method `{method}` cannot be applied to model `{model}`: {conflict}")


def uses_calibration(method: Settings) -> bool:
    """Whether a method's quantizer has settings for a calibration text."""
    return any(key.startswith("calibration") for key in method)


def extra_packages(method: Settings) -> list[str]:
    """The files in envs/ (without .txt) with the packages of a method that the evaluation environment lacks."""
    module = quantizer_named(method["quantizer"])
    of_quantizer = module.PACKAGES if isinstance(module, NeedsPackages) else None
    return [name for name in (of_quantizer, engines.extra_packages(method)) if name]


def methods_of(config: Configuration, model: str) -> list[str]:
    """Methods of the default run that apply to a model, the baseline first."""
    chosen = [m for m in config["evaluate"]["methods"] if model in config["methods"][m].get("models", [model])]
    return sorted(chosen, key=lambda m: m != BASELINE)


def settings_of(config: Configuration, method: str) -> Settings:
    """The settings that a method's quantizer is given; a change of one makes the checkpoint anew."""
    entry = config["methods"][method]
    return {key: value for key, value in entry.items() if key not in ("quantizer", "models", "description")}
