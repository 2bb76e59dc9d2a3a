"""The sources of models and of third parties' checkpoints: a folder, a hub id with its commit, a shape to fill.

A folder is checked before any job starts; a hub model, once it is fetched.
"""

import json
import os
from pathlib import Path

from quantharm.common.checkpoint_files import (
    CheckpointConfig,
    gguf_file,
    gguf_on_hub,
    refuse_gguf_name,
    refuse_other_kinds,
)
from quantharm.common.errors import UserError
from quantharm.config.architectures import read_architecture
from quantharm.config.entries import Configuration, ModelEntry
from quantharm.config.methods import check_method, methods_of
from quantharm.config.validation import removed_by_null


def check_model(config: Configuration, name: str) -> None:
    """Raises UserError unless the model is there, with the chat template that its protocol requires, and every method
    of the default run can be applied to it. Of a hub model only the pinned commit is asked for."""
    model = config["models"][name]
    source = model["source"]
    settings = config_of_model(name, model)
    if settings is None:
        return
    template_required = config["protocols"][model["protocol"]]["chat_template"] == "required"
    if template_required and (isinstance(source, dict) or not has_chat_template(Path(source))):
        raise UserError(
            f"protocol `{model['protocol']}` requires a chat template but the model `{name}` has none; use "
            "`chat_template: auto` or another model"
        )
    for method in methods_of(config, name):
        check_method(method, config["methods"][method], name, settings)


def config_of_model(name: str, model: ModelEntry) -> CheckpointConfig | None:
    """config.json of a model, or the shape that random weights fill; None for a hub model."""
    key, source = f"models.{name}", model["source"]
    if isinstance(source, str):
        refuse_no_model(f"{key}.source", source)
        settings = checkpoint_config(source)
        if settings is None:
            require_pinned_hub_id(key, source, model["revision"], "model")
        return settings
    try:
        shape = read_architecture(source["architecture"])
    except UserError as error:
        raise UserError(f"`{key}.source.architecture` in the config: {error}") from None
    if model["revision"]:
        raise UserError(f"`{key}.revision` in the config is for hub models{removed_by_null('revision')}")
    return shape


def check_pretrained(config: Configuration, name: str) -> None:
    """Raises UserError unless a third party's checkpoint is a folder or a GGUF file here, or a pinned hub id."""
    key, source = f"methods.{name}", config["methods"][name]["source"]
    revision = config["methods"][name]["revision"]
    if gguf_on_hub(source):
        require_commit(key, revision, "checkpoint")
    elif gguf_file(Path(source)) is None:
        refuse_no_model(f"{key}.source", source)
        if checkpoint_config(source) is None:
            require_pinned_hub_id(key, source, revision, "checkpoint")


def refuse_no_model(key: str, source: str) -> None:
    """Raises UserError where a source is known to be no whole model: GGUF, an adapter, half a folder, LFS pointers."""
    try:
        refuse_gguf_name(source)
        if os.path.isdir(source):
            refuse_other_kinds(Path(source))
    except UserError as error:
        raise UserError(f"`{key}` in the config: {error}") from None


def checkpoint_config(source: str) -> CheckpointConfig | None:
    """config.json of a folder here; None where there is none, as for a hub id."""
    path = Path(source) / "config.json"
    try:
        # os.path, because pathlib raises OSError for a name that no file can have
        return json.loads(path.read_text(encoding="utf-8")) if os.path.isfile(path) else None
    except ValueError:
        raise UserError(f"{path} is damaged: it is not JSON; fetch the model again") from None


def require_pinned_hub_id(key: str, source: str, revision: str | None, kind: str) -> None:
    """Raises UserError unless a source that is no model here has the form of a hub id, and a commit beside it."""
    if os.path.exists(source) or source.startswith((".", "/")) or source.count("/") != 1:
        raise UserError(
            f"`{key}.source` in the config is {source!r}, which is no folder with a config.json; correct the path"
        )
    or_else = f"; or, if `source` is meant as a path, correct it: there is no folder {source!r} here"
    require_commit(key, revision, kind, or_else)


def require_commit(key: str, revision: str | None, kind: str, or_else: str = "") -> None:
    """kind: `model` or `checkpoint`; or_else: what else the user may have meant."""
    if not revision:
        raise UserError(f"`{key}.revision` in the config is missing: pin the hub {kind} to a commit{or_else}")


def has_chat_template(folder: Path) -> bool:
    """Whether a model's folder holds a chat template; raises UserError for damaged JSON."""
    if (folder / "chat_template.jinja").is_file():
        return True
    path = folder / "tokenizer_config.json"
    try:
        return path.is_file() and bool(json.loads(path.read_text(encoding="utf-8")).get("chat_template"))
    except ValueError:
        raise UserError(f"{path} is damaged: it is not JSON; fetch the model again") from None
