"""The evaluation text as windows of tokens.

Protocol `concat-N` (GPTQ, AWQ and others report it with N = 2048): the rows of the text joined by blank lines,
tokenized once with the tokenizer's default special tokens, cut into windows of N tokens, the tail dropped; the last
N - 1 tokens of each window are predicted.
"""

import hashlib
from pathlib import Path

from quantharm.common.errors import UserError
from quantharm.common.files import LARGEST_INPUT_BYTES

CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "context_length")  # the last is RWKV's


def read_text(path: Path) -> str:
    """A UTF-8 text; raises UserError when it is missing, empty, too large or something else."""
    path = Path(path)
    if not path.is_file():  # nor a device, which could go on for ever
        raise UserError(f"the text {path} is not a file; correct `texts:` in the config")
    if path.stat().st_size > LARGEST_INPUT_BYTES:
        raise UserError(f"the text {path} is larger than {LARGEST_INPUT_BYTES >> 20} MB; take a part of it")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"the text {path} is not UTF-8; convert it") from None
    if not text.strip():
        raise UserError(f"the text {path} is empty; name another one in the config")
    return text


def language_config(model_config):
    """The language model's part of a configuration: of a model that also takes pictures, its text_config."""
    return model_config.get_text_config() if hasattr(model_config, "get_text_config") else model_config


def context_length(model_config) -> int | None:
    """The longest sequence the model was made for, where its config says; a recurrent one may have none."""
    config = language_config(model_config)
    return next((length for key in CONTEXT_KEYS if (length := getattr(config, key, None))), None)


def token_windows(tokenizer, text: str, length: int) -> list[list[int]]:
    """Windows of `length` token ids; raises UserError when the text does not fill one."""
    if length < 2:
        raise UserError(f"a window of {length} tokens has nothing to predict; set `window_tokens:` to 2 or more")
    ids = tokenizer(text)["input_ids"]
    windows = [ids[i : i + length] for i in range(0, len(ids) - length + 1, length)]
    if not windows:
        raise UserError(
            f"the evaluation text has {len(ids)} tokens, fewer than one window of {length}; use a longer text or a "
            "smaller `window_tokens:`"
        )
    return windows


def protocol_name(length: int, limit: int | None) -> str:
    """`concat-2048`, or `concat-2048-first-4` where only the first windows are scored: never comparable with it."""
    return f"concat-{length}" + (f"-first-{limit}" if limit else "")


def sha256_of_windows(windows: list[list[int]]) -> str:
    """One hash of all token ids: cells are compared only when they scored the same tokens."""
    digest = hashlib.sha256()
    for window in windows:
        digest.update(str(window).encode())
    return digest.hexdigest()
