"""Resolves a model to files on this machine and records them.

A hub id is downloaded into the hub's own cache at its pinned revision (nothing is copied); a folder is taken as it
is. This is the only model stage that may use the network. Writes source.json.
"""

import os
import re
from pathlib import Path

from quantharm.common import chat
from quantharm.common.checkpoint_files import GGUF, gguf_on_hub, refuse_gguf_name, weight_names
from quantharm.common.errors import UserError, first_line
from quantharm.common.files import write_json
from quantharm.common.prompts import read_prompts
from quantharm.common.sanitize import visible
from quantharm.common.stage import run_stage, sentence_for, stage_parser
from quantharm.common.versions import version_of
from quantharm.models.hub import ask_hub
from quantharm.models.loading import load_tokenizer
from quantharm.models.source import describe
from quantharm.quantizers.formats import families

WANTED_FILES = ["*.json", "tokenizer*", "*.model", "*.txt", "*.jinja"]
CODE_FILES = ["*.py"]  # of a checkpoint that is trusted
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def resolve(
    source: str, revision: str | None, allow_pickle: bool, trust_remote_code: bool, quantized: bool = False
) -> tuple[Path, str | None]:
    """(folder, commit) of a folder or hub id; commit is None for a folder. quantized: it may be a GGUF file."""
    folder = Path(source)
    if quantized and folder.suffix.lower() == GGUF:
        return resolve_gguf(source, revision)
    if os.path.isdir(folder):  # pathlib raises OSError for a name that is too long
        return folder, None
    refuse_gguf_name(source)
    if not HUB_ID.fullmatch(source) or source.startswith((".", "/")):
        raise UserError(f"{source} is neither a folder here nor a hub id (owner/name); correct `source:` in the config")
    from huggingface_hub import errors, snapshot_download

    wanted = WANTED_FILES + (CODE_FILES if trust_remote_code else [])
    unreachable = ask_hub(source, revision, "model")
    try:
        path = Path(snapshot_download(source, revision=revision, allow_patterns=wanted))
        # Then the weights that would be loaded, which the files above name; many a repository holds others as well.
        snapshot_download(source, revision=revision, allow_patterns=weight_names(path, allow_pickle))
    except (errors.LocalEntryNotFoundError, OSError, ValueError) as error:
        if sentence_for(error):  # the disk is full
            raise
        raise UserError(
            f"{source} is not in the hub cache and the hub cannot be reached ({unreachable or first_line(error)}); "
            "connect once, copy the cache from a machine that has it, or name a folder"
        ) from None
    return path, path.name


def resolve_gguf(source: str, revision: str | None) -> tuple[Path, str | None]:
    """(file, commit) of a file here or of `owner/name/file.gguf` on the hub."""
    if os.path.isfile(source):
        return Path(source), None
    on_hub = gguf_on_hub(source)
    if on_hub is None:
        raise UserError(f"{source} is neither a file here nor owner/name/file.gguf; correct `source:` in the config")
    from huggingface_hub import errors, snapshot_download

    unreachable = ask_hub(on_hub[0], revision, "model")
    try:
        folder = Path(snapshot_download(on_hub[0], revision=revision, allow_patterns=[on_hub[1]]))
    except (errors.LocalEntryNotFoundError, OSError, ValueError) as error:
        if sentence_for(error):  # the disk is full
            raise
        raise UserError(
            f"{source} is not in the hub cache and the hub cannot be reached ({unreachable}); connect once, copy "
            "the cache from a machine that has it, or name a file"
        ) from None
    if not (folder / on_hub[1]).is_file():
        raise UserError(
            f"{on_hub[0]} holds no file {on_hub[1]} at revision {revision}; correct `source:` in the config"
        )
    return folder / on_hub[1], folder.name


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--model", required=True, help="name in the config")
    parser.add_argument("--source", required=True, help="folder or hub id")
    parser.add_argument("--revision", help="commit of a hub id")
    parser.add_argument("--allow-pickle", action="store_true", help="accept pickled weights, which can run code")
    parser.add_argument("--trust-remote-code", action="store_true", help="accept the checkpoint's own Python code")
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], help="of a quantized checkpoint: where it will run"
    )
    chat.add_flags(parser)
    parser.add_argument("--prompts", type=Path, help="try the chat template on this suite, before anything is computed")
    parser.add_argument("--output", type=Path, required=True, help="source.json")
    arguments = parser.parse_args()
    flags = arguments.allow_pickle, arguments.trust_remote_code
    quantized = arguments.device is not None
    folder, commit = resolve(arguments.source, arguments.revision, *flags, quantized=quantized)
    if quantized:
        families.refuse_unreadable(folder, arguments.device)
    record = describe(arguments.model, arguments.source, folder, commit, *flags, quantized=quantized)
    record["huggingface_hub"] = version_of("huggingface_hub")
    if arguments.prompts:
        tokenizer, asking = load_tokenizer(record), chat.Asking.of(arguments)
        for prompt in read_prompts(arguments.prompts):
            chat.encode_prompt(tokenizer, prompt["prompt"], asking)
    write_json(arguments.output, record)
    # The architecture's name is from a stranger's file.
    print(visible(f"{arguments.model}: {folder}, {record['architecture']}, {record['checkpoint_bytes'] / 1e9:.3f} GB"))


if __name__ == "__main__":
    run_stage(main)
