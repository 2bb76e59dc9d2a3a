"""Loading: what was recorded, in the dtype asked for, and one sentence when it cannot be."""

import os
import shutil

import pytest
import torch

from quantharm.common import stage
from quantharm.common.checkpoint_files import read_checkpoint_config
from quantharm.common.errors import UserError
from quantharm.models.loading import load_cell, load_checkpoint, load_config, load_tokenizer, read_quantization


def message_of(function, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- config.json


@pytest.mark.parametrize(
    ("content", "words"), [(None, "it has no config.json"), (b"{", "is damaged"), (b"", "damaged")]
)
def test_folders_without_a_good_config_are_refused(tmp_path, content, words):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    assert words in message_of(read_checkpoint_config, tmp_path)


# ---------------------------------------------------------------- cells


def test_load_cell_verifies_before_it_loads(tmp_path, nf4_cell):
    folder = tmp_path / "checkpoint"
    shutil.copytree(nf4_cell.checkpoint, folder)
    record = nf4_cell.record | {"checkpoint": str(folder)}
    assert load_cell(record, "cpu") is not None
    path = folder / record["weight_files"][0]["name"]
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    assert "changed after it was recorded" in message_of(load_cell, record, "cpu")


# ---------------------------------------------------------------- damaged checkpoints


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model-00001-of-00002.safetensors", b""),
        ("model-00001-of-00002.safetensors", b"not a tensor file at all"),
        ("config.json", b'{"model_type": "no-such-model"}'),
        ("config.json", b"{}"),
        ("model.safetensors.index.json", b"{}"),
        ("model.safetensors.index.json", b"["),
    ],
)
def test_a_damaged_checkpoint_ends_in_one_sentence(copy_of_reference, reference_source, file, content):
    (copy_of_reference / file).write_bytes(content)
    message = message_of(load_checkpoint, copy_of_reference, reference_source, "float32", "cpu", 1)
    words = {".safetensors": "is not a whole safetensors file", ".index.json": "is damaged"}
    assert next((w for end, w in words.items() if file.endswith(end)), "cannot be loaded") in message


def test_a_truncated_weight_file_ends_in_one_sentence(copy_of_reference, reference_source):
    path = copy_of_reference / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:5_000_000])
    message = message_of(load_checkpoint, copy_of_reference, reference_source, "float32", "cpu", 1)
    assert f"{path} is not a whole safetensors file" in message


@pytest.mark.parametrize("content", [b"{", None])
def test_a_damaged_tokenizer_ends_in_one_sentence(copy_of_reference, reference_source, content):
    if content is None:
        (copy_of_reference / "tokenizer.json").unlink()
    else:
        (copy_of_reference / "tokenizer.json").write_bytes(content)
    source = reference_source | {"path": str(copy_of_reference)}
    assert "the tokenizer in" in message_of(load_tokenizer, source)


@pytest.mark.parametrize("load", [load_tokenizer, load_config])
def test_a_model_that_was_taken_away_is_not_sought_on_the_hub(tmp_path, reference_source, load):
    gone = reference_source | {"path": str(tmp_path / "gone")}
    assert f"{gone['path']}, where the model was, does not exist" in message_of(load, gone)


@pytest.mark.parametrize("content", ["[]", '{"model": "m"}', '"text"', "{"])
def test_what_is_no_quantization_record_is_refused(tmp_path, content):
    path = tmp_path / "quantization.json"
    path.write_text(content)
    assert str(path) in message_of(read_quantization, path)


# ---------------------------------------------------------------- whole checkpoints


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_model_loads_in_the_dtype_asked_and_cannot_learn(reference_source, dtype):
    model = load_checkpoint(reference_source["path"], reference_source, dtype, "cpu", 1)
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_begin_offline_stage(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    stage.begin_offline_stage()
    assert os.environ["HF_HUB_OFFLINE"] == "1"
