"""The files of a checkpoint folder from which transformers loads weights, and folders that it cannot load.

transformers loads model.safetensors, or else the shards that model.safetensors.index.json names; config.json may name
another file (`transformers_weights`). Whatever else lies in the folder (the original's consolidated.safetensors, a
variant in another precision) is not loaded, and is neither hashed, counted nor scanned. Needs no ML library.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quantharm.common.errors import UserError

WEIGHTS = "model.safetensors"
PICKLED_WEIGHTS = "pytorch_model.bin"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
ADAPTER = "adapter_config.json"
GGUF = ".gguf"
POINTER = b"version https://git-lfs"  # begins the pointer that Git LFS leaves in place of a file
POINTER_BYTES = 1024  # no pointer is longer
# config.json as it was read. Each architecture has keys of its own, so a value's type is known where it is used.
CheckpointConfig = dict[str, Any]


def read_checkpoint_config(folder: Path) -> CheckpointConfig:
    """config.json of a checkpoint folder; raises UserError when it is not one."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} is not a model: it has no config.json; name a folder that transformers can load")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); fetch the model again") from None


def gguf_file(checkpoint: Path) -> Path | None:
    """The GGUF file of a checkpoint: the checkpoint itself, or the only one in a folder without safetensors."""
    checkpoint = Path(checkpoint)
    if checkpoint.suffix.lower() == GGUF and checkpoint.is_file():
        return checkpoint
    if not checkpoint.is_dir() or files_by_index(checkpoint, stated_weights(checkpoint) or WEIGHTS):
        return None
    named = [p for p in checkpoint.iterdir() if p.suffix.lower() == GGUF and p.is_file()]
    return named[0] if len(named) == 1 else None


def gguf_on_hub(source: str) -> tuple[str, str] | None:
    """(hub id, file) of `owner/name/file.gguf`, which is no file here."""
    parts = source.split("/", 2)
    here = Path(source).is_file() or source.startswith((".", "/"))
    return None if here or len(parts) < 3 or Path(source).suffix.lower() != GGUF else ("/".join(parts[:2]), parts[2])


def folder_of(checkpoint: Path) -> Path:
    """The folder of a checkpoint's weight files; a GGUF checkpoint may be a file itself."""
    return checkpoint.parent if Path(checkpoint).is_file() else Path(checkpoint)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers would load from a folder, sorted; the file itself for GGUF.

    Empty where it would find none. Shards named by the index are included whether they exist or not. Raises UserError
    for a damaged index.
    """
    packed = gguf_file(folder)
    return [packed] if packed else files_by_index(Path(folder), stated_weights(Path(folder)) or WEIGHTS)


def pickled_weight_files(folder: Path) -> list[Path]:
    """The pickled files that transformers would load where there are no safetensors."""
    return files_by_index(Path(folder), PICKLED_WEIGHTS)


def weight_names(folder: Path, allow_pickle: bool) -> list[str]:
    """Names of the files to download into a folder that has everything but weights yet."""
    files = weight_files(folder) or (pickled_weight_files(folder) if allow_pickle else [])
    single = [stated_weights(folder) or WEIGHTS] + ([PICKLED_WEIGHTS] if allow_pickle else [])
    return [p.relative_to(folder).as_posix() for p in files] + single


def stated_weights(folder: Path) -> str | None:
    """The weight file that config.json names, if it names one; a damaged config.json is refused elsewhere."""
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    name = settings.get("transformers_weights") if isinstance(settings, dict) else None
    return name if isinstance(name, str) else None


def files_by_index(folder: Path, name: str) -> list[Path]:
    """The file of that name, or the files that its index names."""
    index = folder / (name if name.endswith(".index.json") else f"{name}.index.json")
    if (folder / name).is_file() and index.name != name:
        return [inside(folder, name)]
    if not index.is_file():
        return []
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return sorted(inside(folder, shard) for shard in shards)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{index} is damaged: it does not say which file holds which tensor; fetch it again") from None


def inside(folder: Path, name: str) -> Path:
    """A file by its name in the folder; raises UserError for a name that leads out of it."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(f"{folder} names a file of weights outside itself ({name[:200]}); do not load it")
    return folder / name


def refuse_other_kinds(folder: Path) -> None:
    """Raises UserError for a folder that is no whole model: an adapter, GGUF, Git LFS pointers, missing shards.

    models.completeness compares its tensors with the architecture; models.loading judges whether it is safe to load.
    """
    folder = Path(folder)
    files = sorted(p for p in folder.iterdir() if p.is_file())
    names = {p.name for p in files}
    if ADAPTER in names:
        beside = "beside a model, which would be loaded without it" if "config.json" in names else "and not a model"
        raise UserError(
            f"{folder} holds an adapter (LoRA) {beside}; merge the adapter into its base model first (in peft: "
            "`merge_and_unload()`, then `save_pretrained`), and name the folder of the merged model"
        )
    refuse_gguf([p.name for p in files if p.suffix.lower() == ".gguf"], folder, names)
    for path in files:
        if is_pointer(path):
            raise UserError(
                f"{path} is a Git LFS pointer, a note of three lines in place of the file itself; run `git lfs pull` "
                "in its repository, or fetch the model again"
            )
    wanted = weight_files(folder) or pickled_weight_files(folder)
    absent = [p.name for p in wanted if not p.is_file()]
    if absent:
        raise UserError(
            f"{folder} lacks {len(absent)} of the {len(wanted)} weight files that its index names "
            f"({listed(absent)}); fetch the model again"
        )
    others = [p.name for p in files if p.suffix == ".safetensors"]
    if not wanted and others:
        raise UserError(
            f"{folder} holds {listed(others)} but neither {WEIGHTS} nor {WEIGHTS}.index.json, one of which "
            "transformers loads; fetch the model again (a single file in another name has to be renamed)"
        )


def refuse_gguf(gguf_files: list[str], where: Path | str, names: set[str]) -> None:
    """Raises UserError where GGUF files stand in place of a model's safetensors."""
    if gguf_files and ("config.json" not in names or not any(name.endswith(".safetensors") for name in names)):
        raise UserError(
            f"{where} is in the GGUF format ({listed(gguf_files)}), a quantized model and no original; name the "
            "original in safetensors here, and the file (a path, or owner/name/file.gguf) as a method: `quantizer: "
            "pretrained`"
        )


def refuse_gguf_name(source: str) -> None:
    """Raises UserError for a source in GGUF that is no folder here: a file, or a hub id."""
    if Path(source).suffix.lower() == ".gguf":
        refuse_gguf([Path(source).name], source, set())
    if source.count("/") == 1 and "gguf" in source.lower():
        refuse_gguf(["by its name"], source, set())


def is_pointer(path: Path) -> bool:
    """Whether a file is a Git LFS pointer."""
    if path.stat().st_size > POINTER_BYTES:
        return False
    with open(path, "rb") as stream:
        return stream.read(len(POINTER)) == POINTER


def listed(names: Sequence[object], shown: int = 4) -> str:
    """`a, b, c, d and 12 more`"""
    more = len(names) - shown
    return ", ".join(map(str, names[:shown])) + (f" and {more} more" if more > 0 else "")
