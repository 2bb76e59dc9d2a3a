"""The workflow's configuration: checked against its schema, completed with defaults, and checked for sense.

Every mistake ends in one sentence before any job starts. Needs only jsonschema and yaml; no ML library.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import yaml

from quantharm.common.checkpoint_files import gguf_file, gguf_on_hub, refuse_gguf_name, refuse_other_kinds
from quantharm.common.constants import BASELINE
from quantharm.common.errors import UserError
from quantharm.common.files import LARGEST_INPUT_BYTES
from quantharm.config.architectures import read_architecture
from quantharm.config.derived_methods import add_derived_methods
from quantharm.config.engines import with_quantizer
from quantharm.config.methods import check_method, completed_method, methods_of, quantizer_names, uses_calibration
from quantharm.config.names import RESERVED_METHODS, RESERVED_MODELS, refer
from quantharm.config.tasks import check_tasks
from quantharm.config.validation import check_values, removed_by_null, validate, with_defaults, without_nulls


def complete(config: dict[str, Any], schema_path: Path) -> dict[str, Any]:
    """The configuration with all defaults; raises UserError for the first mistake."""
    schema = yaml.safe_load(Path(schema_path).read_text(encoding="utf-8"))
    check_values(config, "the config")
    config = json.loads(json.dumps(config, default=str))  # plain dicts and lists
    config = without_nulls(config, schema)
    if isinstance(config.get("methods"), dict):
        named = config["methods"].items()
        config["methods"] = {name: with_quantizer(m) if isinstance(m, dict) else m for name, m in named}
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
    check_budget(config)
    check_files(config)
    check_tasks(config)
    check_python(config["python"])
    for name in config["models"]:
        check_model(config, name)
    for name, method in config["methods"].items():
        if method["quantizer"] == "pretrained":
            check_pretrained(config, name)
    return config


def check_baseline(config: dict[str, Any]) -> None:
    baseline = config["methods"].get(BASELINE)
    if baseline is None or baseline["quantizer"] != "unquantized" or "noise" in baseline:
        raise UserError("`methods.baseline` in the config must exist, with `quantizer: unquantized` and without noise")


def choose_monitored(config: dict[str, Any]) -> None:
    """Fills in the model and the method that `monitor:` leaves to the default run."""
    monitor, evaluate = config["monitor"], config["evaluate"]
    others = [method for method in evaluate["methods"] if method != BASELINE]
    monitor["model"] = evaluate["models"][0] if monitor["model"] is None else monitor["model"]
    monitor["method"] = (others or [BASELINE])[0] if monitor["method"] is None else monitor["method"]


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
            both = removed_by_null("path") if "path" in text else ""
            raise UserError(f"`texts.{name}` in the config needs either `path` or `dataset`{both}")


def check_budget(config: dict[str, Any]) -> None:
    """The models and methods that a budget names exist, and so does the earlier run."""
    budget = config["budget"]
    for kind in ("models", "methods"):
        for name in budget[kind]:
            refer(config, kind, name, f"budget.{kind}")
    if budget["against"] is not None and not os.path.exists(budget["against"]):
        raise UserError(
            f"`budget.against` in the config is {budget['against'][:200]!r}, which is not here; name the summary.json "
            "of an earlier run, or its folder of results"
        )


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
    sources |= {"budget.against": config["budget"]["against"]} if config["budget"]["against"] else {}
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
    files: dict[str, str] = {}
    signed = {"monitor": config["monitor"]} | {f"models.{name}": entry for name, entry in config["models"].items()}
    for where, entry in signed.items():
        given = {key: entry[key] for key in ("signature", "public_key") if entry.get(key) is not None}
        if len(given) == 1:
            raise UserError(
                f"`{where}` in the config has `{next(iter(given))}` alone; `signature` and `public_key` go together"
            )
        files |= {f"{where}.{key}": path for key, path in given.items()}
    return files


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
    refuse_no_model(f"models.{name}.source", source)
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


def refuse_no_model(key: str, source: str) -> None:
    """Raises UserError where a source is known to be no whole model: GGUF, an adapter, half a folder, LFS pointers."""
    try:
        refuse_gguf_name(source)
        if os.path.isdir(source):
            refuse_other_kinds(Path(source))
    except UserError as error:
        raise UserError(f"`{key}` in the config: {error}") from None


def check_pretrained(config: dict[str, Any], name: str) -> None:
    """A third party's checkpoint is a model's folder here, or a hub id that is pinned to a commit."""
    method, key = config["methods"][name], f"methods.{name}"
    source = method["source"]
    in_gguf = gguf_file(Path(source)) is not None
    if not in_gguf and not gguf_on_hub(source):
        refuse_no_model(f"{key}.source", source)
    if in_gguf or checkpoint_config(source) is not None:
        return
    if gguf_on_hub(source):
        pass
    elif os.path.exists(source) or source.startswith((".", "/")) or source.count("/") != 1:
        raise UserError(f"`{key}.source` in the config is {source!r}, which is no folder with a config.json")
    if not method["revision"]:
        raise UserError(f"`{key}.revision` in the config is missing: pin the hub checkpoint to a commit")


def check_synthetic(config: dict[str, Any], name: str) -> None:
    """The shape is known, every method can be applied to it, and no chat template is asked for."""
    model = config["models"][name]
    try:
        settings = read_architecture(model["source"]["architecture"])
    except UserError as error:
        raise UserError(f"`models.{name}.source.architecture` in the config: {error}") from None
    if model.get("revision"):
        raise UserError(f"`models.{name}.revision` in the config is for hub models{removed_by_null('revision')}")
    if config["protocols"][model["protocol"]]["chat_template"] == "required":
        raise UserError(
            f"protocol `{model['protocol']}` requires a chat template but the model `{name}` is made of random "
            "weights and has none; use `chat_template: auto`"
        )
    for method in methods_of(config, name):
        check_method(method, config["methods"][method], name, settings)


def has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file():
        return True
    path = folder / "tokenizer_config.json"
    try:
        return path.is_file() and bool(json.loads(path.read_text(encoding="utf-8")).get("chat_template"))
    except ValueError:
        raise UserError(f"{path} is damaged: it is not JSON; fetch the model again") from None
