"""The workflow's configuration: checked against its schema, completed with defaults, and checked for sense.

Every mistake ends in one sentence before any job starts. Needs only jsonschema and yaml; no ML library.
"""

import copy
import difflib
import importlib
import json
import os
import pkgutil
import re
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from quantharm import noise
from quantharm.architectures import read_architecture
from quantharm.errors import UserError
from quantharm.files import LARGEST_INPUT_BYTES

BASELINE = "baseline"
RESERVED_MODELS = ("logs", "benchmarks", "texts")
LARGEST_CONFIG_BYTES = 2**18
MOST_VALUES = 100_000  # of a whole configuration, aliases written out; the shipped one has 300
TEMPLATES = "__use_yte__"  # Snakemake would then run the Python expressions in the file
NOISE_NAME = re.compile(
    rf"(?:(?P<method>.+)\+)?noise-(?P<sigma>\d+(?:\.\d+)?(?:e-?\d+)?)(?:-(?P<target>{'|'.join(noise.GRID_NAMES)}))?"
)
CORRUPTIONS = ("random_tokens", "repeated_token")  # of calibration samples, as in quantizers/awq.py
NOISE_TARGET = "nf4"  # of noise alone, where its name does not say
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
        "noise": noise.SCHEMA,
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


def check_config_file(path: Path) -> None:
    """Raises UserError unless `path` is a small YAML file, before Snakemake reads it; a missing one is Snakemake's."""
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


def check_values(config: Any, where: str) -> None:
    """Raises UserError where a configuration has no end: aliases of aliases (a YAML bomb), or a list within itself.

    config: YAML nodes, or what was made of them.
    """
    waiting, seen = [config], 0
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


def complete(config: dict[str, Any], schema_path: Path) -> dict[str, Any]:
    """The configuration with all defaults; raises UserError for the first mistake."""
    schema = yaml.safe_load(Path(schema_path).read_text(encoding="utf-8"))
    check_values(config, "the config")
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
        config["methods"][name] = completed_method(name, method)
    check_baseline(config)
    add_derived_methods(config)
    choose_monitored(config)
    check_names(config)
    check_files(config)
    check_python(config["python"])
    for name in config["models"]:
        check_model(config, name)
    return config


def completed_method(name: str, method: dict[str, Any]) -> dict[str, Any]:
    """A method's entry with its quantizer's defaults; raises UserError where it is not what the quantizer takes."""
    own = method_schema(method["quantizer"])
    validate(method, own, ("methods", name))
    method = with_defaults(method, own)
    conflict = noise.conflict(method["quantizer"], method) if "noise" in method else None
    if conflict:
        raise UserError(f"method `{name}` in the config cannot {conflict}")
    return method


def check_baseline(config: dict[str, Any]) -> None:
    baseline = config["methods"].get(BASELINE)
    if baseline is None or baseline["quantizer"] != "unquantized" or "noise" in baseline:
        raise UserError("`methods.baseline` in the config must exist, with `quantizer: unquantized` and without noise")


def noise_method(config: dict[str, Any], name: str) -> dict[str, Any] | None:
    """The entry that a name like `noise-0.3`, `noise-0.3-int8` or `nf4+noise-0.3` stands for; None for other names.

    σ is in half-widths of the method's own grid, or of the one that is named.
    """
    match = NOISE_NAME.fullmatch(name)
    of = match and (match["method"] or BASELINE)
    if not match or of not in config["methods"]:
        return None
    target = match["target"] or (NOISE_TARGET if of == BASELINE else None)
    settings = {"sigma": float(match["sigma"]), "target": target, "seed": config["defense"]["seed"]}
    return completed_method(name, copy.deepcopy(config["methods"][of]) | {"noise": settings})


def rounding_methods(config: dict[str, Any], section: str) -> list[str]:
    """`methods` of a section; where it is null, those of the default run that round to a grid and carry no noise."""
    named = config[section]["methods"]
    for name in named or []:
        refer(config, "methods", name, f"{section}.methods")
        if own_grid(config, name) is None:
            raise UserError(f"`{section}.methods` in the config names `{name}`, which rounds to no grid; leave it out")
    if named is not None:
        return named
    known = (name for name in config["evaluate"]["methods"] if name in config["methods"])
    return [name for name in known if own_grid(config, name) and "noise" not in config["methods"][name]]


def own_grid(config: dict[str, Any], method: str) -> str | None:
    entry = config["methods"][method]
    return noise.grid_of(entry["quantizer"], entry | {"noise": {}})


def noise_sweep(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The sweep of `snakemake defense`: {method, sigma, alone, quantized}.

    `alone` and `quantized` name the cell with the noise in 16 bits and the cell with the same noise before the method.
    """
    return [
        {
            "method": method,
            "sigma": sigma,
            "alone": f"noise-{sigma:g}-{own_grid(config, method)}",
            "quantized": f"{method}+noise-{sigma:g}",
        }
        for method in rounding_methods(config, "defense")
        for sigma in config["defense"]["sigmas"]
    ]


def calibration_cells(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells of `snakemake calibration`: {method, text, seed, corruption, cell}, the last one its name."""
    study = config["calibration_study"]
    cells = []
    for method in rounding_methods(config, "calibration_study"):
        if "calibration_samples" not in config["methods"][method]:
            if study["methods"] is not None:
                raise UserError(
                    f"`calibration_study.methods` in the config names `{method}`, which calibrates on nothing"
                )
            continue
        for text in study["texts"]:
            cells += [
                {"method": method, "text": text, "seed": s, "corruption": None, "cell": f"{method}+{text}-{s}"}
                for s in study["seeds"]
            ]
        cells += [
            {"method": method, "text": None, "seed": 0, "corruption": c, "cell": f"{method}+{c.replace('_', '-')}"}
            for c in CORRUPTIONS
        ]
    return cells


def calibration_method(config: dict[str, Any], cell: dict[str, Any]) -> dict[str, Any]:
    """The entry of a cell of the study."""
    study = config["calibration_study"]
    settings = {
        "calibration_text": study["texts"].get(cell["text"]),
        "calibration_samples": study["samples"],
        "calibration_seed": cell["seed"],
        "calibration_corruption": cell["corruption"],
    }
    return completed_method(cell["cell"], copy.deepcopy(config["methods"][cell["method"]]) | settings)


def add_derived_methods(config: dict[str, Any]) -> None:
    """Adds the entries of methods that a name stands for: with noise, or of the calibration study."""
    found = {cell["cell"]: calibration_method(config, cell) for cell in calibration_cells(config)}
    swept = [cell[kind] for cell in noise_sweep(config) for kind in ("alone", "quantized")]
    for name in [*config["evaluate"]["methods"], *swept]:
        entry = None if name in config["methods"] else noise_method(config, name)
        if entry is not None:
            found[name] = entry
    config["methods"] |= {name: entry for name, entry in found.items() if name not in config["methods"]}


def choose_monitored(config: dict[str, Any]) -> None:
    """Fills in the model and the method that `monitor:` leaves to the default run."""
    monitor, evaluate = config["monitor"], config["evaluate"]
    others = [method for method in evaluate["methods"] if method != BASELINE]
    monitor["model"] = evaluate["models"][0] if monitor["model"] is None else monitor["model"]
    monitor["method"] = (others or [BASELINE])[0] if monitor["method"] is None else monitor["method"]


def refer(config: dict[str, Any], kind: str, name: str, where: str) -> None:
    """Raises UserError where a name that stands at `where` is not one of the config's `kind`."""
    if name not in config[kind]:
        close = difflib.get_close_matches(name, list(config[kind]), 1)
        hint = f"did you mean `{close[0]}`?" if close else f"there are {', '.join(config[kind])}"
        raise UserError(f"`{where}` in the config names `{name}`, which is not under `{kind}`; {hint}")


def models_of(config: dict[str, Any], section: str) -> list[str]:
    """`models` of a section, or those of the default run where it is null."""
    return config["evaluate"]["models"] if config[section]["models"] is None else config[section]["models"]


def check_names(config: dict[str, Any]) -> None:
    """Every name that the configuration refers to exists in it."""
    if BASELINE not in config["evaluate"]["methods"]:
        raise UserError(
            "`evaluate.methods` in the config lacks `baseline`, which every method is compared with; add it"
        )
    for reserved in set(RESERVED_MODELS) & set(config["models"]):
        raise UserError(f"a model in the config is called `{reserved}`, which is a folder of the workflow; rename it")

    for reserved in set(RESERVED_METHODS) & set(config["methods"]):
        raise UserError(f"a method in the config is called `{reserved}`, which is a folder of the workflow; rename it")

    for kind in ("models", "methods"):
        for name in config["evaluate"][kind]:
            refer(config, kind, name, f"evaluate.{kind}")
    for kind in ("model", "method"):
        refer(config, f"{kind}s", config["monitor"][kind], f"monitor.{kind}")
    for section in ("defense", "calibration_study"):
        for name in config[section]["models"] or []:
            refer(config, "models", name, f"{section}.models")
    for name, model in config["models"].items():
        refer(config, "protocols", model["protocol"], f"models.{name}.protocol")
    for name, protocol in config["protocols"].items():
        refer(config, "texts", protocol["text"], f"protocols.{name}.text")
    for name, method in config["methods"].items():
        for model in method.get("models", []):
            refer(config, "models", model, f"methods.{name}.models")
    for name, text in config["texts"].items():
        if ("path" in text) == ("dataset" in text):
            raise UserError(f"`texts.{name}` in the config needs either `path` or `dataset`")


def check_files(config: dict[str, Any]) -> None:
    """Every text and prompt suite that the configuration names is a file here, and small enough to be one."""
    files = {f"texts.{name}.path": text["path"] for name, text in config["texts"].items() if "path" in text}
    files |= {f"protocols.{name}.prompts": protocol["prompts"] for name, protocol in config["protocols"].items()}
    if any(uses_calibration(method) for method in config["methods"].values()):
        files["calibration"] = config["calibration"]
    files |= signature_files(config)
    sources = {
        f"{kind}.{name}.source": entry["source"]
        for kind in ("models", "methods")
        for name, entry in config[kind].items()
        if isinstance(entry.get("source"), str)
    }
    for key, path in (sources | files).items():
        if set("{}") & set(path) or not path.isprintable():
            raise UserError(
                f"`{key}` in the config is {path[:200]!r}; Snakemake takes no file names with braces or control "
                "characters: rename it"
            )
    for key, path in files.items():
        if not os.path.isfile(path):  # os.path, because pathlib raises OSError for a name that is too long
            raise UserError(f"`{key}` in the config is {path[:200]!r}, which is no file here; correct the path")
        if os.path.getsize(path) > LARGEST_INPUT_BYTES:
            raise UserError(
                f"`{key}` in the config is {path[:200]!r}, which is larger than {LARGEST_INPUT_BYTES >> 20} MB; "
                "take a part of it"
            )


def check_python(interpreter: str | None) -> None:
    """Before it is started job by job, perhaps on a cluster, where only a shell would say that it is not there."""
    if interpreter is not None and shutil.which(interpreter) is None:
        raise UserError(
            f"`python` in the config is {interpreter[:200]!r}, which is no program here; name an interpreter that has "
            "the packages of envs/evaluation.txt, or null to have one built"
        )


def signature_files(config: dict[str, Any]) -> dict[str, str]:
    """{key: path} of signatures and of the keys that verify them; raises UserError for one without the other."""
    files = {}
    signed = {"monitor": config["monitor"]} | {f"models.{name}": entry for name, entry in config["models"].items()}
    for where, entry in signed.items():
        given = {key: entry[key] for key in ("signature", "public_key") if entry.get(key) is not None}
        if len(given) == 1:
            raise UserError(
                f"`{where}` in the config has `{next(iter(given))}` alone; `signature` and `public_key` go together"
            )
        files |= {f"{where}.{key}": path for key, path in given.items()}
    return files


def uses_calibration(method: dict[str, Any]) -> bool:
    """Whether a method's quantizer has settings for a calibration text."""
    return any(key.startswith("calibration") for key in method)


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
