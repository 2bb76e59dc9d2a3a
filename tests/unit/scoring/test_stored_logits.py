"""The store of the baseline's logits: what comes back, what it takes, and what damage ends in."""

import errno

import pyarrow.parquet
import pytest
import torch

from quantharm.common.errors import UserError
from quantharm.scoring import stored_logits as store_module
from quantharm.scoring.store_writer import StoreWriter
from quantharm.scoring.stored_logits import read_store, require_same, store_metadata

VOCABULARY = 1000
METADATA = {"model": "m", "revision": "abc", "dtype": "bfloat16"}


def log_probabilities(positions: int, seed: int = 0, vocabulary: int = VOCABULARY) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(positions, vocabulary, generator=generator) * 3).log_softmax(-1)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "logits.parquet"


@pytest.fixture
def written(path):
    with StoreWriter(path, VOCABULARY, METADATA) as writer:
        for i, count in enumerate([3, 50, 1]):
            writer.write(f"p-{i}", "Cat | ö", range(7, 7 + count), range(count), log_probabilities(count, i))
    return path


def test_round_trip(written):
    groups = list(read_store(written))
    assert [g.prompt_id for g in groups] == ["p-0", "p-1", "p-2"]
    assert {g.category for g in groups} == {"Cat | ö"}
    for i, (group, count) in enumerate(zip(groups, [3, 50, 1], strict=True)):
        assert group.position.tolist() == list(range(7, 7 + count))
        assert group.token_id.tolist() == list(range(count))
        assert group.log_probabilities.dtype == torch.float16
        assert torch.equal(group.log_probabilities, log_probabilities(count, i).half())


def test_one_row_group_a_prompt(written):
    file = pyarrow.parquet.ParquetFile(written)
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [3, 50, 1]


def test_at_most_2_05_bytes_an_entry(path):
    vocabulary = 8192
    with StoreWriter(path, vocabulary, METADATA) as writer:
        for i in range(8):
            writer.write(f"prompt-{i}", "Category", range(32), range(32), log_probabilities(32, i, vocabulary))
    assert 2.0 <= path.stat().st_size / (8 * 32 * vocabulary) <= 2.05


def test_metadata_come_back(written):
    assert store_metadata(written) == METADATA | {"format": 1, "vocabulary": VOCABULARY}
    assert require_same(written, METADATA)["revision"] == "abc"


@pytest.mark.parametrize(
    ("expected", "words"), [({"revision": "xyz"}, ["abc", "xyz"]), ({"device": "H200"}, ["None", "H200"])]
)
def test_a_store_made_from_something_else_is_refused_naming_both_values(written, expected, words):
    with pytest.raises(UserError) as caught:
        require_same(written, METADATA | expected)
    assert all(word in str(caught.value) for word in [*expected, *words])
    assert "\n" not in str(caught.value)


def test_a_store_of_another_format_is_refused(written, monkeypatch):
    monkeypatch.setattr(store_module, "FORMATS", {"log_probabilities": 7, "hidden_states": 8})
    with pytest.raises(UserError, match=r"has format 1, which this version does not read \(it reads 7, 8\)"):
        require_same(written, METADATA)


def read_all(path):
    require_same(path, METADATA)
    return [g.log_probabilities for g in read_store(path)]


def one_sentence_of_damage(path):
    with pytest.raises(UserError) as caught:
        read_all(path)
    message = str(caught.value)
    assert str(path) in message
    assert "delete it" in message
    assert "\n" not in message


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.95, 0.9999])
def test_a_truncated_store_ends_in_one_sentence(written, keep):
    content = written.read_bytes()
    written.write_bytes(content[: int(keep * len(content))])
    one_sentence_of_damage(written)


@pytest.mark.parametrize("where", [0.05, 0.3, 0.5, 0.7, 0.9])
def test_a_flipped_byte_in_a_page_is_an_error_not_a_figure(written, where):
    content = bytearray(written.read_bytes())
    content[int(where * len(content))] ^= 0x04
    written.write_bytes(content)
    one_sentence_of_damage(written)


def test_no_flipped_byte_changes_a_figure_or_ends_in_a_traceback(path):
    with StoreWriter(path, 20, METADATA) as writer:
        for i in range(2):
            writer.write(f"p-{i}", "C", range(3), range(3), log_probabilities(3, i, 20))
    content = path.read_bytes()

    def everything():
        require_same(path, METADATA)
        return [
            (g.prompt_id, g.category, g.position.tolist(), g.token_id.tolist(), g.log_probabilities.tolist())
            for g in read_store(path)
        ]

    whole = everything()
    refused, changed = 0, []
    for i in range(0, len(content), 2):
        damaged = bytearray(content)
        damaged[i] ^= 0x10
        path.write_bytes(damaged)
        try:
            if everything() != whole:
                changed.append(i)
        except UserError:
            refused += 1
    assert not changed, f"flipping these bytes of {len(content)} changed a figure without an error"
    assert refused > len(content) / 6


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not a store at all" * 100, b"PAR1" + bytes(100) + b"PAR1"])
def test_what_is_no_parquet_file_ends_in_one_sentence(path, content):
    path.write_bytes(content)
    one_sentence_of_damage(path)


def test_a_parquet_file_that_is_no_store_is_refused(path):
    pyarrow.parquet.write_table(pyarrow.table({"a": [1, 2]}), path)
    with pytest.raises(UserError, match=r"is not a log-prob store"):
        store_metadata(path)


def test_a_missing_store_is_refused(path):
    with pytest.raises(UserError, match=r"does not exist; run the stage `logits`"):
        store_metadata(path)


def test_reading_is_streamed_row_group_by_row_group(path, monkeypatch):
    """No more than one row group is read ahead of the one in use, and whole files never are."""
    with StoreWriter(path, VOCABULARY, METADATA) as writer:
        for i in range(12):
            writer.write(f"p-{i}", "C", range(40), range(40), log_probabilities(40, i))
    reads = []

    class Recording(pyarrow.parquet.ParquetFile):
        def read_row_group(self, i, *arguments, **keywords):
            reads.append(i)
            return super().read_row_group(i, *arguments, **keywords)

        def read(self, *_, **__):
            raise AssertionError("the whole store was read at once")

    monkeypatch.setattr(pyarrow.parquet, "ParquetFile", Recording)
    for used, _ in enumerate(read_store(path)):
        assert len(reads) <= used + 2
    assert reads == list(range(12))


def test_a_disk_that_cannot_take_the_store_is_noticed(path, monkeypatch):
    """Writing only fills the cache of the disk; it is the disk that fails later, beside other writing."""

    def fail(_) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left"), StoreWriter(path, VOCABULARY, METADATA) as writer:
        writer.write("p", "C", range(4), range(4), log_probabilities(4, 0))


def test_several_readers_give_the_same_groups_in_the_same_order(path):
    with StoreWriter(path, 64, {}) as writer:
        for i in range(40):
            writer.write(f"p{i}", "c", range(i % 5 + 1), range(i % 5 + 1), torch.randn(i % 5 + 1, 64))
    alone, together = list(read_store(path)), list(read_store(path, readers=4))
    assert [g.prompt_id for g in together] == [f"p{i}" for i in range(40)]
    assert all(torch.equal(a.log_probabilities, b.log_probabilities) for a, b in zip(alone, together, strict=True))


def test_memory_held_does_not_grow_with_the_number_of_prompts(path):
    """Arrow's peak stays below two and a bit row groups of forty."""
    vocabulary, group_bytes = 20_000, 20_000 * 2 * 50
    with StoreWriter(path, vocabulary, METADATA) as writer:
        block = log_probabilities(50, 0, vocabulary)
        for i in range(40):
            writer.write(f"p-{i}", "C", range(50), range(50), block)
    most = 0
    for group in read_store(path):
        most = max(most, pyarrow.total_allocated_bytes())
        assert group.log_probabilities.shape == (50, vocabulary)
    assert 0 < most < 8 * group_bytes


# ---------------------------------------------------------------- hidden states


def states_metadata(width: int, dtype: torch.dtype) -> dict:
    return METADATA | {"hidden_states": {"width": width, "dtype": str(dtype).removeprefix("torch.")}}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_hidden_states_come_back_bit_by_bit(path, dtype):
    states = [torch.randn(n, 48).to(dtype) for n in (3, 70)]
    with StoreWriter(path, VOCABULARY, states_metadata(48, dtype)) as writer:
        for i, values in enumerate(states):
            writer.write(f"p-{i}", "C", range(1, len(values) + 1), range(len(values)), values)
    for group, values in zip(read_store(path), states, strict=True):
        assert group.log_probabilities is None
        assert group.top_token_id is None
        assert group.hidden_states.dtype == dtype
        assert torch.equal(group.hidden_states, values)
    assert store_metadata(path)["format"] == 2


def test_at_most_2_1_bytes_times_the_width_a_position(path):
    """As the full protocol has it: answers of 100 tokens, windows of 2,047 targets; the store is as a whole."""
    width, counts = 256, [100] * 24 + [2047] * 4
    with StoreWriter(path, VOCABULARY, states_metadata(width, torch.bfloat16)) as writer:
        for i, count in enumerate(counts):
            writer.write(f"prompt-{i}", "Category", range(count), range(count), torch.randn(count, width).bfloat16())
    assert 2.0 <= path.stat().st_size / sum(counts) / width <= 2.1


@pytest.mark.parametrize("where", [0.1, 0.4, 0.6])
def test_a_flipped_bit_of_a_hidden_state_is_an_error(path, where):
    with StoreWriter(path, VOCABULARY, states_metadata(64, torch.bfloat16)) as writer:
        writer.write("p", "C", range(200), range(200), torch.randn(200, 64).bfloat16())
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged .*; delete it and run the same command again"):
        list(read_store(path))


def test_only_the_groups_that_are_wanted_are_read_whole(path, monkeypatch):
    with StoreWriter(path, VOCABULARY, METADATA) as writer:
        for i in range(6):
            category = "text" if i % 2 else "C"
            writer.write(f"p-{i}", category, range(2), range(2), log_probabilities(2, i))
    whole = []
    read_group = store_module.read_group
    monkeypatch.setattr(store_module, "read_group", lambda *a: whole.append(a[1]) or read_group(*a))
    groups = list(read_store(path, wanted=lambda prompt, category: category == "text" and prompt != "p-3"))
    assert [g.prompt_id for g in groups] == ["p-1", "p-5"]
    assert whole == [1, 5]
