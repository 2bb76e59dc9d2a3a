"""The evaluation text as windows of tokens.

Protocol `concat-N` (GPTQ, AWQ and others report it with N = 2048): the rows of the text joined by blank lines,
tokenized once with the tokenizer's default special tokens, cut into windows of N tokens, the tail dropped; the last
N - 1 tokens of each window are predicted.

Protocol `concat-N-bos`, for models that need BOS in front: the text is cut into pieces of N - 1 tokens, each a window
after a BOS of its own, so that every token of the text is predicted.
"""

import hashlib
from collections import Counter
from pathlib import Path

import numpy

from quantharm.common.errors import UserError
from quantharm.common.files import LARGEST_INPUT_BYTES

CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "context_length")  # the last is RWKV's


def read_text(path: Path) -> str:
    """A UTF-8 text; raises UserError when it is missing, empty, too large or something else."""
    path = Path(path)
    if not path.is_file():  # nor a device, which could go on for ever
        raise UserError(f"the text {path} is not a file; correct `texts:` in the config")
    if path.stat().st_size > LARGEST_INPUT_BYTES:
        raise UserError(f"the text {path} is larger than {LARGEST_INPUT_BYTES >> 20} MB; shorten it")
    try:
        text = path.read_text(encoding="utf-8-sig")  # a byte order mark is no text
    except UnicodeDecodeError:
        raise UserError(f"the text {path} is not UTF-8; convert it") from None
    if not text.strip():
        raise UserError(f"the text {path} is empty; name another one in the config")
    return text


def language_config(model_config):
    """The language model's configuration; the text_config of a model that also takes images."""
    return model_config.get_text_config() if hasattr(model_config, "get_text_config") else model_config


def context_length(model_config) -> int | None:
    """The longest sequence that the model was made for; None where its configuration states none (recurrent ones)."""
    config = language_config(model_config)
    return next((length for key in CONTEXT_KEYS if (length := getattr(config, key, None))), None)


def bos_in_front(setting: str, tokenizer, model_type: str | None) -> int | None:
    """The BOS id to put before every window; None for windows as they are cut. setting: `true`, `false` or `auto`.

    A tokenizer that adds BOS is no reason: Llama's does, and its published figures have one BOS in front of the whole
    text. So `auto` follows measurements of families: only Gemma needs it (perplexity 67 as cut, 25 with BOS). Raises
    UserError for `true` without a BOS token.
    """
    bos = tokenizer.bos_token_id
    if setting == "true" and bos is None:
        raise UserError("`bos_every_window: true` but the tokenizer has no BOS token; use auto or false")
    wanted = setting == "true" or (setting == "auto" and "gemma" in (model_type or "") and bos is not None)
    return bos if wanted else None


def token_windows(tokenizer, text: str, length: int, bos: int | None = None) -> list[list[int]]:
    """Windows of `length` token ids, each after `bos` if that is given; raises UserError when the text fills none."""
    if length < 2:
        raise UserError(f"a window of {length} tokens has nothing to predict; set `window_tokens:` to 2 or more")
    ids = tokenizer(text, add_special_tokens=bos is None)["input_ids"]
    front = [] if bos is None else [bos]
    step = length - len(front)
    windows = [front + ids[i : i + step] for i in range(0, len(ids) - step + 1, step)]
    if not windows:
        raise UserError(
            f"the evaluation text has {len(ids)} tokens, fewer than one window of {length}; use a longer text or a "
            "smaller `window_tokens:`"
        )
    return windows


def scored_bytes(tokenizer, text: str, windows: list[list[int]], bos: int | None = None) -> float:
    """UTF-8 bytes of the text behind the predicted tokens of its first windows.

    Taken from the tokens' positions in the text: decoding a window would lose characters and spaces cut by its edges. A
    character made of several tokens is shared equally among them, so the figure may be a fraction.
    """
    length = len(windows[0])
    if not tokenizer.is_fast:  # knows no places; half a character decodes to replacement characters
        return float(sum(decoded_bytes(tokenizer.decode(window[1:])) for window in windows))
    encoded = tokenizer(text, add_special_tokens=bos is None, return_offsets_mapping=True)
    last_bytes = byte_ends(text, encoded["offset_mapping"])
    if bos is None:
        return float(sum(last_bytes[i * length + length - 1] - last_bytes[i * length] for i in range(len(windows))))
    return float(last_bytes[len(windows) * (length - 1) - 1])


def decoded_bytes(text: str) -> int:
    """UTF-8 bytes of a decoded window; a replacement character at its edges, half a character there, counts as one."""
    inside = text.strip("\ufffd")
    return len(inside.encode("utf-8")) + len(text) - len(inside)


def byte_ends(text: str, places: list[tuple[int, int]]) -> list[float]:
    """The end of each token, in bytes of the text; places: (first, end) of each token, in characters."""
    points = numpy.frombuffer(text.encode("utf-32-le"), dtype=numpy.uint32)
    widths = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000)  # bytes of each character
    starts = (numpy.cumsum(widths) - widths).tolist()
    holders = Counter(c for first, end in places if end > first for c in {first, end - 1})  # tokens of a character
    seen: Counter[int] = Counter()
    last_bytes, reached = [], 0.0
    for first, end in places:
        if end > first:  # a special token has no place
            seen.update({first, end - 1})
            share = seen[end - 1] / holders[end - 1]
            reached = max(reached, starts[end - 1] + share * int(widths[end - 1]))
        last_bytes.append(reached)
    return last_bytes


def protocol_name(length: int, limit: int | None, bos: int | None = None) -> str:
    """`concat-2048`; with `-bos` for a BOS in each window, `-first-4` for the first four windows alone."""
    return f"concat-{length}" + ("" if bos is None else "-bos") + (f"-first-{limit}" if limit else "")


def sha256_of_windows(windows: list[list[int]]) -> str:
    """One hash of all token ids: cells are compared only when they scored the same tokens."""
    digest = hashlib.sha256()
    for window in windows:
        digest.update(str(window).encode())
    return digest.hexdigest()
