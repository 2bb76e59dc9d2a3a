"""Only checkpoints are loaded that bring no code of their own and are those that were recorded."""

import json
import os

import pytest

from quantharm.common.errors import UserError
from quantharm.models.loading import load_checkpoint
from quantharm.models.safety import hash_weights, refuse_unsafe, verify_weights


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
