"""Checkpoints of random weights: shapes of published models, seeded, and marked wherever a figure of quality is."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file

from quantharm import fetch, synthesize
from quantharm.common.errors import UserError
from quantharm.config.architectures import ARCHITECTURES, parameter_count, read_architecture
from quantharm.config.resources import billion_parameters
from quantharm.models import loading
from quantharm.synthesize import model_configuration

SHAPE = ARCHITECTURES["mistral-7b"] | {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 8200,
}


@pytest.fixture
def make(tmp_path, root, monkeypatch):
    def make_one(name: str, seed: int):
        (tmp_path / "shape.json").write_text(json.dumps(SHAPE))
        flags = ["--architecture", tmp_path / "shape.json", "--tokenizer", root / "data" / "reference-model"]
        flags += ["--seed", seed, "--device", "cpu", "--output", tmp_path / name]
        monkeypatch.setattr(sys, "argv", ["synthesize", *map(str, flags)])
        synthesize.main()
        return tmp_path / name

    return make_one


@pytest.mark.parametrize(
    ("name", "parameters"),  # as the models' own pages state them
    [("mistral-7b", 7_241_732_096), ("phi-3-mini", 3_821_079_552), ("qwen2.5-0.5b", 494_032_768)],
)
def test_shapes_have_the_published_number_of_parameters(root, name, parameters):
    from transformers import AutoModelForCausalLM

    configuration = model_configuration(read_architecture(name), root / "data" / "reference-model")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(configuration)
    assert model.num_parameters() == parameters
    assert parameter_count(read_architecture(name)) == pytest.approx(parameters, rel=1e-3)
    entry = {"source": {"architecture": name, "seed": 0}, "billion_parameters": None}
    assert billion_parameters(entry) == pytest.approx(parameters / 1e9, rel=1e-3)


def test_a_checkpoint_is_seeded_marked_and_loads(make, tmp_path):
    first, same, other = make("a", 0), make("b", 0), make("c", 1)
    weights = [load_file(folder / "model-00001.safetensors") for folder in (first, same, other)]
    matrix = "model.layers.1.mlp.down_proj.weight"
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0][matrix], weights[2][matrix])
    assert weights[0][matrix].dtype == torch.bfloat16
    assert weights[0][matrix].float().std().item() == pytest.approx(0.02, rel=0.05)
    source = fetch.describe("m", str(first), first, None, False, False)
    assert source["synthetic"]
    assert source["source"] == f"random weights in the shape of {tmp_path / 'shape.json'}, seed 0"
    assert source["tokenizer_sha256"]
    model = loading.load_checkpoint(first, source, "float32", "cpu", 1)
    ids = loading.load_tokenizer(source)("Some words")["input_ids"]
    assert torch.isfinite(model(input_ids=torch.tensor([ids])).logits).all()
    assert (model.generation_config.bos_token_id, model.generation_config.eos_token_id) == (0, 1)


@pytest.mark.parametrize("tied", [True, False])
def test_layers_written_one_by_one_are_the_whole_model(root, tmp_path, monkeypatch, tied):
    """In shards smaller than the model, on a device that never holds all of it; what transformers makes at once."""
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(synthesize, "SHARD_BYTES", 50_000)
    configuration = model_configuration(SHAPE | {"tie_word_embeddings": tied}, root / "data" / "reference-model")
    size = synthesize.write_checkpoint(
        model := synthesize.empty_model(configuration, "bfloat16"), synthesize.random_tensors(model, "cpu", 0), tmp_path
    )
    assert {p.device.type for p in model.parameters()} == {"meta"}
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert size == sum(2 * p.numel() for p in loaded.parameters())
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    whole = AutoModelForCausalLM.from_config(configuration, dtype=torch.bfloat16)
    for (name, ours), (_, theirs) in zip(loaded.named_parameters(), whole.named_parameters(), strict=True):
        assert ours.float().mean().item() == pytest.approx(theirs.float().mean().item(), abs=2e-3), name
        assert ours.float().std().item() == pytest.approx(theirs.float().std().item(), rel=0.1, abs=1e-6), name


def test_another_checkpoint_is_not_marked(reference_source):
    assert reference_source["synthetic"] is False


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "is neither a shape known here nor a config.json"),
        ("{", "is not a model's configuration"),
        ("{}", "is not a model's configuration"),
    ],
)
def test_what_is_no_shape_is_refused(tmp_path, content, words):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=words):
        read_architecture(str(path))


def test_a_misspelt_shape_gets_a_hint():
    with pytest.raises(UserError, match="did you mean `mistral-7b`"):
        read_architecture("mistral-7B")


@pytest.mark.parametrize(
    ("change", "words"), [({"vocab_size": 100}, "smaller than the built-in tokenizer's"), ({"model_type": "x"}, "`x`")]
)
def test_shapes_that_cannot_be_filled_are_refused(root, change, words):
    with pytest.raises(UserError, match=words):
        model_configuration(SHAPE | change, root / "data" / "reference-model")
