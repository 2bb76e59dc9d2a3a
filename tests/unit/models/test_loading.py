"""Loading: only what is safe, only what was recorded, and one sentence when it cannot be."""

import json
import os
import shutil

import pytest
import torch

from quantharm.common import stage
from quantharm.common.errors import UserError
from quantharm.models.loading import (
    choose_device,
    device_map,
    hash_weights,
    load_cell,
    load_checkpoint,
    load_tokenizer,
    read_checkpoint_config,
    read_quantization,
    refuse_unsafe,
    verify_weights,
)
from quantharm.models.source import tokenizer_hashes


def checkpoint(folder, *files: str, **settings):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | settings))
    for name in files:
        (folder / name).write_bytes(b"weights")
    return folder


def message_of(function, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- unsafe checkpoints


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "x.ckpt", "x.pkl"])
def test_pickle_only_is_refused_unless_it_is_allowed(tmp_path, name):
    folder = checkpoint(tmp_path / "m", name)
    message = message_of(refuse_unsafe, folder, False, False)
    assert name in message
    assert "allow_pickle: true" in message
    if name == "pytorch_model.bin":
        refuse_unsafe(folder, True, False)
    else:
        assert "no pytorch_model.bin" in message_of(refuse_unsafe, folder, True, False)


def test_pickle_beside_safetensors_is_no_matter(tmp_path):
    refuse_unsafe(checkpoint(tmp_path / "m", "model.safetensors", "pytorch_model.bin"), False, False)


def test_code_of_an_unknown_architecture_is_refused_unless_it_is_trusted(tmp_path):
    folder = checkpoint(tmp_path / "m", "model.safetensors", model_type="mine", auto_map={"AutoModel": "x.Y"})
    message = message_of(refuse_unsafe, folder, False, False)
    assert "its own Python code" in message
    assert "trust_remote_code: true" in message
    refuse_unsafe(folder, False, True)


def test_code_of_a_known_architecture_is_not_needed(tmp_path):
    refuse_unsafe(checkpoint(tmp_path / "m", "model.safetensors", auto_map={"AutoModel": "x.Y"}), False, False)


@pytest.mark.parametrize("allow_pickle", [False, True])
def test_a_folder_without_weights_is_refused(tmp_path, allow_pickle):
    assert "holds no weights" in message_of(refuse_unsafe, checkpoint(tmp_path / "m"), allow_pickle, False)


def test_load_checkpoint_refuses_pickle_too(tmp_path, reference_source):
    folder = checkpoint(tmp_path / "m", "pytorch_model.bin")
    message = message_of(load_checkpoint, folder, reference_source, "float32", "cpu", 1)
    assert "only as pickle" in message


# ---------------------------------------------------------------- config.json


@pytest.mark.parametrize(
    ("content", "words"), [(None, "it has no config.json"), (b"{", "is damaged"), (b"", "damaged")]
)
def test_folders_without_a_good_config_are_refused(tmp_path, content, words):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    assert words in message_of(read_checkpoint_config, tmp_path)


# ---------------------------------------------------------------- weights as recorded


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "m" / "model.safetensors"
    path.parent.mkdir()
    path.write_bytes(bytes(1000))
    return path, hash_weights(path.parent)


def test_unchanged_weights_are_accepted(weights):
    verify_weights(weights[0].parent, weights[1])


def test_a_copy_with_another_time_is_accepted(weights):
    path, record = weights
    os.utime(path, (1, 1))
    verify_weights(path.parent, record)


def test_changed_bytes_of_the_same_size_are_refused(weights):
    path, record = weights
    path.write_bytes(bytes(999) + b"x")
    os.utime(path, (1, 1))
    message = message_of(verify_weights, path.parent, record)
    assert "changed after it was recorded" in message
    assert record[0]["sha256"][:12] in message


@pytest.mark.parametrize("size", [0, 999, 1001])
def test_another_size_is_refused_whatever_the_time(weights, size):
    path, record = weights
    path.write_bytes(bytes(size))
    os.utime(path, ns=(record[0]["modified_ns"],) * 2)
    assert "changed after it was recorded" in message_of(verify_weights, path.parent, record)


def test_missing_weights_are_refused(weights):
    path, record = weights
    path.unlink()
    assert "is missing" in message_of(verify_weights, path.parent, record)


def test_weights_that_were_added_are_refused(copy_of_reference, reference_source):
    """Beside an index, model.safetensors would be loaded in place of the recorded shards."""
    files = reference_source["weight_files"]
    (copy_of_reference / "consolidated.safetensors").write_bytes(b"never loaded")
    verify_weights(copy_of_reference, files)
    (copy_of_reference / "model.safetensors").write_bytes(b"other weights")
    assert "model.safetensors was added" in message_of(verify_weights, copy_of_reference, files)


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


def test_hashes_name_every_weight_file(reference_source, root):
    files = reference_source["weight_files"]
    assert [f["name"] for f in files] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert sum(f["bytes"] for f in files) == reference_source["checkpoint_bytes"] == 20_988_344


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


@pytest.mark.parametrize("content", ["[]", '{"model": "m"}', '"text"', "{"])
def test_what_is_no_quantization_record_is_refused(tmp_path, content):
    path = tmp_path / "quantization.json"
    path.write_text(content)
    assert str(path) in message_of(read_quantization, path)


# ---------------------------------------------------------------- devices and loading


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_without_a_gpu_is_refused_and_auto_means_the_cpu():
    assert "PyTorch sees no GPU here" in message_of(choose_device, "cuda", 1)
    assert choose_device("auto", 1) == choose_device("cpu", 1) == "cpu"
    assert "`gpus: 2` is asked for but PyTorch sees 0" in message_of(device_map, "cuda", 2)


def test_device_map_of_the_cpu():
    assert device_map("cpu", 4) == {"": "cpu"}


def test_a_model_is_spread_over_the_gpus_that_it_asks_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_map("cuda", 1) == {"": 0}
    assert device_map("cuda", 2) == "balanced"
    assert "`gpus: 3` is asked for but PyTorch sees 2" in message_of(device_map, "cuda", 3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_model_loads_in_the_dtype_asked_and_cannot_learn(reference_source, dtype):
    model = load_checkpoint(reference_source["path"], reference_source, dtype, "cpu", 1)
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_offline_environment(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    stage.offline_environment()
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_source_record_of_the_reference_model(reference_source):
    expected = {"architecture": "MistralForCausalLM", "hidden_size": 256, "layers": 8, "vocabulary": 8192}
    assert expected.items() <= reference_source.items()
    assert reference_source["context"] == 1024
    assert reference_source["chat_template_sha256"] is None


def test_hash_of_the_tokenizer_changes_with_its_files(copy_of_reference, reference_source):
    assert tokenizer_hashes(copy_of_reference)["tokenizer_sha256"] == reference_source["tokenizer_sha256"]
    (copy_of_reference / "chat_template.jinja").write_text("{{ messages }}")
    assert tokenizer_hashes(copy_of_reference)["chat_template_sha256"] is not None
    path = copy_of_reference / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8") + " ", encoding="utf-8")
    assert tokenizer_hashes(copy_of_reference)["tokenizer_sha256"] != reference_source["tokenizer_sha256"]
