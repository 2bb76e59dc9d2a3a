"""Windows of tokens and the names of protocols; what the built-in texts must hold."""

import hashlib
import itertools
import re
from types import SimpleNamespace

import pytest
import transformers

from quantharm.common.errors import UserError
from quantharm.common.overlap import shared_sequences
from quantharm.common.text import (
    bos_in_front,
    context_length,
    protocol_name,
    read_text,
    scored_bytes,
    sha256_of_windows,
    token_windows,
)


def test_windows_are_consecutive_and_the_tail_is_dropped(byte_tokenizer):
    text = "abcdefghijk"
    windows = token_windows(byte_tokenizer(), text, 4)
    ids = byte_tokenizer()(text)["input_ids"]
    assert windows == [ids[0:4], ids[4:8]]


def test_a_text_that_fills_its_windows_exactly_loses_nothing(byte_tokenizer):
    windows = token_windows(byte_tokenizer(), "abcdefgh", 4)
    assert [len(w) for w in windows] == [4, 4]


def test_special_tokens_are_added_once_at_the_start_of_the_whole_text(byte_tokenizer):
    windows = token_windows(byte_tokenizer(bos=True), "abcdefg", 4)
    assert windows[0][0] == 0
    assert 0 not in windows[0][1:] + windows[1]


def test_the_whole_text_is_tokenized_at_once(reference_tokenizer, evaluation_text):
    ids = reference_tokenizer(evaluation_text)["input_ids"]
    windows = token_windows(reference_tokenizer, evaluation_text, 500)
    assert list(itertools.chain(*windows)) == ids[: 500 * (len(ids) // 500)]
    assert len(ids) % 500  # there was a tail to drop


def test_a_text_shorter_than_a_window_is_refused(byte_tokenizer):
    with pytest.raises(UserError, match=r"has 3 tokens, fewer than one window of 4"):
        token_windows(byte_tokenizer(), "abc", 4)


@pytest.mark.parametrize("length", [0, 1])
def test_windows_with_nothing_to_predict_are_refused(byte_tokenizer, length):
    with pytest.raises(UserError, match=rf"a window of {length} tokens has nothing to predict"):
        token_windows(byte_tokenizer(), "abc", length)


@pytest.mark.parametrize(
    ("length", "limit", "name"),
    [(2048, None, "concat-2048"), (1024, None, "concat-1024"), (64, 4, "concat-64-first-4")],
)
def test_protocol_name(length, limit, name):
    assert protocol_name(length, limit) == name
    assert protocol_name(length, limit, bos=2) == name.replace(str(length), f"{length}-bos")


def test_context_length_of_both_spellings():
    assert context_length(SimpleNamespace(max_position_embeddings=7)) == 7
    assert context_length(SimpleNamespace(n_positions=9)) == 9
    assert context_length(SimpleNamespace()) is None


def test_hash_of_windows_sees_every_token_their_order_and_their_borders():
    variants = [[[1, 2], [3, 4]], [[1, 2], [3, 5]], [[3, 4], [1, 2]], [[1, 2, 3, 4]], [[1, 2]], [[12], [3, 4]]]
    assert len({sha256_of_windows(v) for v in variants}) == len(variants)
    assert sha256_of_windows([[1, 2]]) == hashlib.sha256(b"[1, 2]").hexdigest()


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "is not a file"), (b"\xff\xfe\x00", "is not UTF-8"), (b"", "is empty"), (b" \n\t ", "is empty")],
)
def test_texts_that_cannot_be_read_are_refused(tmp_path, content, message):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_text(path)


def test_text_is_read_as_it_is(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("Grüße\n\n  12 × 3 \n", encoding="utf-8")
    assert read_text(path) == "Grüße\n\n  12 × 3 \n"


def test_a_byte_order_mark_and_windows_line_ends_are_no_text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("\ufeffGrüße\r\nvon hier\r\n".encode())
    assert read_text(path) == "Grüße\nvon hier\n"


# ---------------------------------------------------------------- BOS in front of every window


def test_bos_windows_predict_every_token_once_after_a_bos_of_their_own(byte_tokenizer):
    tokenizer, text = byte_tokenizer(bos=True), "abcdefghijk"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert token_windows(tokenizer, text, 4, bos=0) == [[0, *ids[0:3]], [0, *ids[3:6]], [0, *ids[6:9]]]


@pytest.mark.parametrize(
    ("setting", "model_type", "expected"),
    [
        ("auto", "gemma", 0),
        ("auto", "gemma3_text", 0),
        ("auto", "recurrent_gemma", 0),
        ("auto", "llama", None),  # adds BOS by itself, and its published figures have one
        ("auto", None, None),
        ("true", "llama", 0),
        ("false", "gemma2", None),
    ],
)
def test_who_gets_bos_in_front(byte_tokenizer, setting, model_type, expected):
    assert bos_in_front(setting, byte_tokenizer(bos=True), model_type) == expected


def test_bos_cannot_be_had_from_a_tokenizer_without_one(byte_tokenizer):
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = None
    assert bos_in_front("auto", tokenizer, "gemma2") is None
    with pytest.raises(UserError, match=r"`bos_every_window: true` but the tokenizer has no BOS token"):
        bos_in_front("true", tokenizer, "llama")


# ---------------------------------------------------------------- bytes

CHINESE = "今天天气很好，我们去公园散步吧。" * 8 + "plain ASCII, Grüße, 🙂🙂"


@pytest.fixture(scope="module")
def merging_tokenizer():
    """merging_tokenizer(): bytes, some of them merged over the border of a character, as real vocabularies are."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([CHINESE[:60]], trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


def true_bytes(tokenizer, windows: list[list[int]]) -> int:
    """Of byte-level tokens: a token is spelt with one letter a byte."""
    return sum(len(token) for window in windows for token in tokenizer.convert_ids_to_tokens(window[1:]))


@pytest.mark.parametrize("length", [2, 4, 7, 16])
@pytest.mark.parametrize("text", [CHINESE, "abc def ghi " * 20])
def test_bytes_are_those_of_the_predicted_tokens(byte_tokenizer, length, text):
    tokenizer = byte_tokenizer(bos=True)  # each byte is a token
    for bos in (None, 0):
        windows = token_windows(tokenizer, text, length, bos)
        assert scored_bytes(tokenizer, text, windows, bos) == pytest.approx(len(windows) * (length - 1), abs=1e-6)
        assert scored_bytes(tokenizer, text, windows[:3], bos) == pytest.approx(3 * (length - 1), abs=1e-6)


@pytest.mark.parametrize("length", [5, 16])
def test_bytes_of_merged_tokens_are_off_by_less_than_one_an_edge(merging_tokenizer, length):
    windows = token_windows(merging_tokenizer, CHINESE, length)
    expected = true_bytes(merging_tokenizer, windows)
    by_decoding = sum(len(merging_tokenizer.decode(w[1:]).encode()) for w in windows)
    counted = scored_bytes(merging_tokenizer, CHINESE, windows)
    assert abs(counted - expected) <= len(windows)
    assert abs(by_decoding - expected) > 2 * abs(counted - expected)


def test_spaces_at_the_start_of_a_window_are_counted():
    """A SentencePiece-like tokenizer: decoding a window drops the space that its first token begins with."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = {"▁a": 0, "▁bb": 1, "▁ccc": 2, "<unk>": 3}
    tokenizer = Tokenizer(models.WordLevel(vocab=words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    text = "a bb ccc " * 4 + "a"
    windows = token_windows(fast, text, 3)
    assert len(windows) == 4
    assert scored_bytes(fast, text, windows) == 4 * len(" bb ccc")


def test_bytes_of_a_tokenizer_that_knows_no_places(byte_tokenizer):
    tokenizer = byte_tokenizer()
    windows = token_windows(tokenizer, CHINESE, 16)
    slow = SimpleNamespace(is_fast=False, decode=tokenizer.decode)
    assert scored_bytes(slow, CHINESE, windows) == pytest.approx(15 * len(windows), rel=0.05)


@pytest.mark.parametrize(("name", "kilobytes"), [("evaluation", 60), ("calibration", 40)])
def test_built_in_texts_are_long_enough(root, name, kilobytes):
    assert (root / "data" / f"{name}.txt").stat().st_size >= 1000 * kilobytes


def own_sequences(text: str, length: int = 13) -> list[tuple[str, ...]]:
    """All runs of `length` words, by code that shares nothing with overlap.py."""
    words = re.sub(r"[\W_]+", " ", text.lower()).split()
    return list(zip(*(words[i:] for i in range(length)), strict=False))


@pytest.fixture(scope="module")
def texts(root):
    return {name: (root / "data" / f"{name}.txt").read_text(encoding="utf-8") for name in ("evaluation", "calibration")}


def test_evaluation_calibration_and_prompts_share_no_13_words(texts, suite):
    parts = texts | {p["id"]: p["prompt"] for p in suite}
    owner: dict[tuple[str, ...], str] = {}
    for name, text in parts.items():
        for sequence in own_sequences(text):
            assert owner.setdefault(sequence, name) == name, (
                f"{' '.join(sequence)!r} is in {owner[sequence]} and {name}"
            )
    assert len(owner) > 15_000


@pytest.mark.parametrize("name", ["evaluation", "calibration"])
def test_no_13_words_occur_twice_in_a_text(texts, name):
    sequences = own_sequences(texts[name])
    assert len(sequences) == len(set(sequences))


def test_overlap_finds_what_is_planted_despite_case_and_punctuation(texts):
    words = texts["evaluation"].split()[500:540]
    planted = f"{texts['calibration']} {' ... '.join(words).upper()} the end"
    shared = shared_sequences(planted, [texts["evaluation"]])
    assert len(shared) >= 28 - 5
    assert not shared_sequences(texts["calibration"], [texts["evaluation"]])


def test_overlap_needs_the_full_length():
    twelve = " ".join(f"w{i}" for i in range(12))
    assert shared_sequences(f"a {twelve} b", [f"c {twelve} d"]) == []
    assert shared_sequences(f"a {twelve} x b", ["", f"c {twelve} x d"]) == [f"{twelve} x"]


def test_overlap_sees_the_first_and_the_last_words_of_a_text():
    thirteen = " ".join(f"w{i}" for i in range(13))
    assert shared_sequences(thirteen, [f"before {thirteen}"]) == [thirteen]
    assert shared_sequences(f"{thirteen} after", [thirteen]) == [thirteen]
