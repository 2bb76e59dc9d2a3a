"""Only checkpoints are loaded that bring no code of their own and are those that were recorded."""

import json
import os
from types import SimpleNamespace

import pytest

from quantharm.checks import checks_of_weights
from quantharm.common.errors import UserError
from quantharm.common.stage import Timing
from quantharm.models import safety
from quantharm.models.loading import load_checkpoint
from quantharm.models.safety import (
    hash_config_files,
    hash_weights,
    refuse_unsafe,
    verify_config_files,
    verify_weights,
)


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


# ---------------------------------------------------------------- code


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


def test_weights_that_change_while_they_are_hashed_are_not_those_recorded(weights, monkeypatch):
    path, _ = weights
    hashed = safety.sha256_of_files

    def overwritten_meanwhile(files):
        hashes = hashed(files)
        path.write_bytes(bytes(999) + b"y")
        os.utime(path, (2, 2))
        return hashes

    monkeypatch.setattr(safety, "sha256_of_files", overwritten_meanwhile)
    record = hash_weights(path.parent)
    monkeypatch.setattr(safety, "sha256_of_files", hashed)
    assert "changed after it was recorded" in message_of(verify_weights, path.parent, record)


def test_missing_weights_are_refused(weights):
    path, record = weights
    path.unlink()
    message = message_of(verify_weights, path.parent, record)
    assert f"{path} is missing; restore it" in message
    assert f"delete {path.parents[1]} " not in message  # beside a user's own model lie others


def test_weights_that_were_added_are_refused(copy_of_reference, reference_source):
    """Beside an index, model.safetensors would be loaded in place of the recorded shards."""
    files = reference_source["weight_files"]
    (copy_of_reference / "consolidated.safetensors").write_bytes(b"never loaded")
    verify_weights(copy_of_reference, files)
    (copy_of_reference / "model.safetensors").write_bytes(b"other weights")
    assert "model.safetensors was added" in message_of(verify_weights, copy_of_reference, files)


def test_hashes_name_every_weight_file(reference_source, root):
    files = reference_source["weight_files"]
    assert [f["name"] for f in files] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert sum(f["bytes"] for f in files) == reference_source["checkpoint_bytes"] == 20_988_344


# ---------------------------------------------------------------- what lies beside them


@pytest.mark.parametrize(
    ("name", "trusted", "noticed"),
    [
        ("config.json", False, "changed"),
        ("tokenizer.json", False, "added"),
        ("added_tokens.json", False, "added"),
        ("chat_template.jinja", False, "added"),  # stands before the one in tokenizer_config.json
        ("generation_config.json", False, "added"),
        ("modeling_x.py", True, "added"),
        ("modeling_x.py", False, None),  # never run
        ("notes.txt", False, None),
    ],
)
def test_what_decides_the_figures_is_as_recorded(name, trusted, noticed, tmp_path):
    folder = checkpoint(tmp_path / "m", "model.safetensors")
    recorded = hash_config_files(folder, trusted)
    verify_config_files(folder, recorded, trusted)
    (folder / name).write_text("{}")
    if noticed is None:
        verify_config_files(folder, recorded, trusted)
        return
    assert f"{folder / name} was {noticed} after" in message_of(verify_config_files, folder, recorded, trusted)
    (folder / name).unlink()
    if noticed == "changed":
        assert f"{folder / name} was removed after" in message_of(verify_config_files, folder, recorded, trusted)


def test_the_checks_ask_too(baseline_cell, root):
    record = baseline_cell.record | {"config_files": {"config.json": "0" * 64}}
    arguments = SimpleNamespace(text=root / "data" / "evaluation.txt")
    assert "was changed after" in message_of(checks_of_weights, arguments, record, {}, {}, "cpu", Timing())


def test_an_older_record_names_no_files_beside_the_weights(tmp_path):
    verify_config_files(checkpoint(tmp_path / "m", "model.safetensors"), None, False)
