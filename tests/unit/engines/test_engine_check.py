"""The check `engine`: a sound kernel passes, one that multiplies wrongly fails, whatever the file's type."""

import importlib.util

import pytest
from gguf_writer import BUILT_IN
from tiny_qwen import random_model, write_gguf
from transformers import AutoTokenizer

from quantharm.forensics.checks import logits
from quantharm.models.loading import load_in_transformers
from quantharm.models.safety import hash_weights

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None,
    reason="the package xllamacpp is missing; `make test` installs it from envs/llama-cpp.txt",
)
TEXT = "The quick brown fox jumps over the lazy dog, and nobody asks it why. " * 20


def record_of(folder, model_folder) -> dict:
    source = {"path": str(model_folder), "trust_remote_code": False, "allow_pickle": False}
    resolved = source | {"path": str(folder)}
    return {
        "checkpoint": str(folder),
        "weight_files": hash_weights(folder),
        "quantizer": "pretrained",
        "settings": {"engine": "llama.cpp", "resolved": resolved, "backend": None},
        "source": source,
        "dtype": "float32",
        "gpus": 1,
    }


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_a_broken_kernel_fails_and_a_sound_one_passes(kind, tmp_path, monkeypatch):
    model = random_model()
    model.config.save_pretrained(tmp_path / "model")
    monkeypatch.setattr("quantharm.models.loading.load_tokenizer", lambda _: AutoTokenizer.from_pretrained(BUILT_IN))
    for name, folder in (("sound", tmp_path / "sound"), ("other", tmp_path / "other")):
        folder.mkdir()
        if name == "other":  # what a kernel would give that takes half of the blocks with another scale
            for layer in model.model.layers:
                layer.mlp.down_proj.weight.data[:, ::2] *= 2
        write_gguf(model, folder / "model.gguf", kind)
    record, broken = (record_of(tmp_path / name, tmp_path / "model") for name in ("sound", "other"))
    tokenizer, right = AutoTokenizer.from_pretrained(BUILT_IN), logits.engines.open_cell
    sound = logits.check_engine(record, load_in_transformers(record, "cpu"), "cpu", tokenizer, TEXT)
    assert sound["status"] == "pass"
    assert 0 < sound["value"] < logits.ENGINE_LIMIT
    monkeypatch.setattr(logits.engines, "open_cell", lambda _, device: right(broken, device))
    found = logits.check_engine(record, load_in_transformers(record, "cpu"), "cpu", tokenizer, TEXT)
    assert found["status"] == "fail"
    assert found["value"] > 2 * logits.ENGINE_LIMIT
