"""Whether the files of a checkpoint may be loaded: they bring no code that is not allowed, and are those recorded.

Weights are safetensors or GGUF, which hold numbers only; pickled weights and Python code of a checkpoint run whatever
they like, so the config has to allow them.
"""

from pathlib import Path

from quantharm.common.checkpoint_files import (
    GGUF,
    PICKLE_SUFFIXES,
    folder_of,
    gguf_file,
    pickled_weight_files,
    read_checkpoint_config,
    refuse_other_kinds,
    weight_files,
)
from quantharm.common.errors import UserError
from quantharm.common.files import sha256_of_files
from quantharm.common.records.parts import WeightFile

# What beside the weights decides the figures: the model's shape, its tokens, its chat template, when an answer ends.
# All of them are fetched with a hub's model, so none is added to its folder in the hub's cache later on.
CONFIG_FILES = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json"]
CONFIG_FILES += ["vocab.txt", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model", "*.jinja"]
CONFIG_FILES += ["additional_chat_templates/*.jinja"]
CODE_FILES = ["*.py"]  # of a checkpoint that is trusted


def refuse_unsafe(folder: Path, allow_pickle: bool, trust_remote_code: bool) -> None:
    """Raises UserError for a folder that is no whole model, or whose weights or code may run code unallowed.

    allow_pickle, trust_remote_code: as the config's entry of the checkpoint says.
    """
    if gguf_file(folder):
        return  # numbers and texts only
    if Path(folder).is_dir():
        refuse_other_kinds(folder)
    settings = read_checkpoint_config(folder)
    if settings.get("auto_map") and not trust_remote_code and not is_known_architecture(settings.get("model_type")):
        raise UserError(
            f"{folder} asks to run its own Python code (auto_map in config.json), which could do anything on this "
            "machine; if you trust it set `trust_remote_code: true` in its config entry"
        )
    if weight_files(folder):
        return
    pickled = sorted(p.name for p in Path(folder).iterdir() if p.suffix in PICKLE_SUFFIXES)
    if not pickled:
        raise UserError(f"{folder} holds no weights (*.safetensors); fetch the model again or name another folder")
    if allow_pickle and not pickled_weight_files(folder):
        raise UserError(
            f"{folder} holds pickled files ({pickled[0]}) but no pytorch_model.bin, which would be loaded; use a "
            "safetensors version"
        )
    if not allow_pickle:
        raise UserError(
            f"{folder} holds its weights only as pickle ({pickled[0]}), which runs code when it is loaded; use a "
            "safetensors version, or set `allow_pickle: true` in its config entry if you trust it"
        )


def is_known_architecture(model_type: str | None) -> bool:
    """Whether transformers itself can build such a model, so that a checkpoint's own code is not needed."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return model_type in CONFIG_MAPPING_NAMES


def hash_weights(folder: Path, allow_pickle: bool = False) -> list[WeightFile]:
    """Name, size, time and sha256 of each weight file; of pickled ones, if allowed, where there are no others."""
    files = weight_files(folder)
    if not files and allow_pickle:
        files = pickled_weight_files(folder)
    states = {path: path.stat() for path in files}  # before: a file that changes while it is hashed is hashed again
    hashes = sha256_of_files(files)
    return [
        {"name": p.name, "bytes": states[p].st_size, "modified_ns": states[p].st_mtime_ns, "sha256": hashes[p]}
        for p in files
    ]


def verify_weights(folder: Path, files: list[WeightFile], in_full: bool = False) -> None:
    """Raises UserError where a weight file is not the recorded one, or files besides the recorded would be loaded.

    A file is hashed only if its size or time differs from the record; in_full: every file is.
    """
    folder = folder_of(folder)
    doubtful: dict[Path, str] = {}  # {file: recorded sha256}
    for file in files:
        path = Path(folder) / file["name"]
        if not path.is_file():
            raise UserError(f"{path} is missing; restore it, or delete the cell's folder to make it again")
        if in_full or (path.stat().st_size, path.stat().st_mtime_ns) != (file["bytes"], file["modified_ns"]):
            doubtful[path] = file["sha256"]
    recorded = {file["name"] for file in files}
    in_gguf = any(name.lower().endswith(GGUF) for name in recorded)  # other files of the same model may lie beside it
    added = sorted({p.name for p in weight_files(folder)} - recorded) if not in_gguf else []
    if added:
        raise UserError(
            f"{Path(folder) / added[0]} was added after the weights were recorded, and would be loaded; take it out, "
            "or delete the cell's folder to make it again"
        )
    for path, sha256 in sha256_of_files(list(doubtful)).items():
        if sha256 != doubtful[path]:
            raise UserError(
                f"{path} changed after it was recorded (its sha256 is no longer {doubtful[path][:12]}…), so results "
                "would not describe one checkpoint; restore it, or delete the cell's folder to make it again"
            )


def hash_config_files(folder: Path, trust_remote_code: bool = False) -> dict[str, str]:
    """{name: sha256} of the files beside the weights that decide the figures; empty for a GGUF file, which has all."""
    if not folder.is_dir():
        return {}
    patterns = CONFIG_FILES + (CODE_FILES if trust_remote_code else [])
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    return {path.relative_to(folder).as_posix(): sha256 for path, sha256 in sha256_of_files(paths).items()}


def verify_config_files(folder: Path, recorded: dict[str, str] | None, trust_remote_code: bool) -> None:
    """Raises UserError where a file beside the weights is not the recorded one; None: of an older record."""
    if recorded is None or not folder.exists():  # which is said where its weights are looked for
        return
    present = hash_config_files(folder, trust_remote_code)
    differing = [name for name in sorted(recorded | present) if recorded.get(name) != present.get(name)]
    if differing:
        name = differing[0]
        fate = "changed" if name in recorded and name in present else "removed" if name in recorded else "added"
        raise UserError(
            f"{folder / name} was {fate} after the checkpoint was recorded, so results would not describe one "
            "model; restore it, or fetch the model again (of a quantized checkpoint: delete the cell's folder)"
        )
