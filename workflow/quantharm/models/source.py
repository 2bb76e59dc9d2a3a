"""The source record of a checkpoint folder: fetch writes it, and it tells whether cells are of one model."""

import json
from pathlib import Path

from quantharm.common.checkpoint_files import (
    folder_of,
    gguf_file,
    pickled_weight_files,
    read_checkpoint_config,
    refuse_gguf,
    weight_files,
)
from quantharm.common.errors import UserError
from quantharm.common.files import read_json, sha256_of_text
from quantharm.common.records.source import SourceRecord, TokenizerHashes
from quantharm.models.completeness import check_whole
from quantharm.models.language_models import refuse_unless_causal, shape_of
from quantharm.models.loading import SYNTHETIC_MARK, quiet
from quantharm.models.safety import hash_config_files, hash_weights, refuse_unsafe


def tokenizer_hashes(folder: Path) -> TokenizerHashes:
    """Hashes of the files that decide the token ids: the tokenizer's, and its chat template (None without one)."""
    names = ["tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "special_tokens_map.json"]
    texts = [p.read_bytes().hex() for n in names if (p := folder / n).is_file()]
    template = None
    for path in (folder / "chat_template.jinja", folder / "tokenizer_config.json"):
        if template is None and path.is_file():
            text = path.read_text(encoding="utf-8")
            template = text if path.suffix == ".jinja" else default_of(json.loads(text).get("chat_template"))
    return {
        "tokenizer_sha256": sha256_of_text("".join(texts)),
        "chat_template_sha256": sha256_of_text(str(template)) if template else None,
    }


def default_of(template: str | list[dict[str, str]] | None) -> str | None:
    """The template that prompts are put by, where a tokenizer_config.json lists several by their names."""
    if not isinstance(template, list):
        return template
    return next((entry["template"] for entry in template if entry.get("name") == "default"), str(template))


def describe(
    name: str,
    source: str,
    folder: Path,
    commit: str | None,
    allow_pickle: bool,
    trust_remote_code: bool,
    quantized: bool = False,
) -> SourceRecord:
    """The source record of a checkpoint: a folder, or a GGUF file where `quantized` ones are accepted.

    name: in the config; source: folder or hub id there; folder: of the files; commit: of a hub model. Raises UserError
    for a folder that is no whole causal language model, or may not be loaded.
    """
    quiet()
    packed = gguf_file(folder)
    if packed and not quantized:
        refuse_gguf([packed.name], folder, set())
    if quantized and not packed and not weight_files(folder) and pickled_weight_files(folder):
        raise UserError(
            f"{folder} holds its weights only as pickle, in which quantized checkpoints are not read here; use a "
            "safetensors version"
        )
    refuse_unsafe(folder, allow_pickle, trust_remote_code)
    settings = {"architectures": ["GGUF"]} if packed else read_checkpoint_config(folder)
    if not packed:
        refuse_unless_causal(settings, str(folder), trust_remote_code)
    check_whole(folder, trust_remote_code)
    files = hash_weights(folder, allow_pickle)
    mark = folder / SYNTHETIC_MARK
    if mark.is_file():
        synthesis = read_json(mark)
        source = f"random weights in the shape of {synthesis['architecture']}, seed {synthesis['seed']}"
    return {
        "model": name,
        "source": source,
        "revision": commit,
        "path": str(folder),
        "allow_pickle": allow_pickle,
        "trust_remote_code": trust_remote_code,
        "architecture": (settings.get("architectures") or ["?"])[0],
        **shape_of(folder, trust_remote_code),
        "checkpoint_bytes": sum(f["bytes"] for f in files),
        "weight_files": files,
        "config_files": hash_config_files(folder, trust_remote_code),
        "weights_sha256": sha256_of_text("".join(f["sha256"] for f in files)),
        "synthetic": mark.is_file(),
        **tokenizer_hashes(folder_of(folder)),
    }
