"""A third party's checkpoint computes in the dtype of its model, whatever it was saved in."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from quantharm import fetch
from quantharm.common.errors import UserError
from quantharm.models.devices import dtype_of
from quantharm.models.loading import load_checkpoint
from quantharm.quantizers import pretrained, quantized_layers

IDS = torch.tensor([[0, 5, 77, 200, 31, 8]])


@pytest.fixture(scope="module")
def theirs(tiny, save_checkpoint, tmp_path_factory):
    """{kind: source record} of checkpoints saved in bfloat16; the 4-bit ones fix what their kernels compute in."""
    folder = tmp_path_factory.mktemp("theirs")
    source = save_checkpoint(tiny("llama", torch.bfloat16), folder / "original")
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    configs = {
        "nf4": four | {"bnb_4bit_compute_dtype": "bfloat16"},
        "nf4-half": four | {"bnb_4bit_compute_dtype": "float16"},
        "nf4-stored": four | {"bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_quant_storage": "bfloat16"},
        "int8": {"load_in_8bit": True},
    }
    made = {}
    for kind, settings in configs.items():
        config = transformers.BitsAndBytesConfig(**settings)
        model = load_checkpoint(source["path"], source, "bfloat16", "cpu", 1, quantization_config=config)
        model.save_pretrained(folder / kind)
        made[kind] = fetch.describe(kind, kind, folder / kind, None, False, False)
    return made


def load(record, dtype: str):
    settings = {"resolved": record, "backend": None}
    return pretrained.load(Path(record["path"]), settings, record, dtype, "cpu", 1)


def plain_copy(tiny, record):
    """A model in float32 that holds what the checkpoint stands for, by arithmetic of our own."""
    model = load(record, "bfloat16")
    matrices = {
        m.name: m.dequantize() for m in quantized_layers.quantized_matrices(model, record["path"], "pretrained")
    }
    plain = tiny("llama")
    for name, parameter in plain.named_parameters():
        values = matrices.get(name.removesuffix(".weight"))
        parameter.copy_(model.get_parameter(name) if values is None else values)
    return plain


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("kind", ["nf4", "nf4-half", "nf4-stored", "int8"])
def test_it_computes_in_the_dtype_that_is_asked_for(theirs, kind, dtype):
    model = load(theirs[kind], dtype)
    wanted = getattr(torch, dtype)
    assert dtype_of(model) == dtype
    plain = {p.dtype for p in model.parameters() if type(p) is torch.nn.Parameter}
    assert plain == {wanted}
    assert {m.compute_dtype for m in model.modules() if type(m).__name__ == "Linear4bit"} <= {wanted}
    logits = model(IDS).logits
    assert logits.dtype == wanted
    assert logits.isfinite().all()


@pytest.mark.parametrize("kind", ["nf4", "nf4-half"])
def test_in_float32_it_is_exact(theirs, tiny, kind):
    """Against a plain float32 model: no product is rounded to the 16 bits that the checkpoint names."""
    logits, expected = load(theirs[kind], "float32")(IDS).logits, plain_copy(tiny, theirs[kind])(IDS).logits
    error = (logits - expected).norm() / expected.norm()
    coarse = (load(theirs[kind], "bfloat16")(IDS).logits.float() - expected).norm() / expected.norm()
    assert error < 1e-5 < coarse


CHANGES = {  # of config.json
    r"9 missing, which would be random numbers \(model\.layers\.2": {"num_hidden_layers": 3},
    r"cannot be loaded \(llm_int8_threshold must be a float": {"quantization_config": {"llm_int8_threshold": "6"}},
}


@pytest.mark.parametrize("fault", CHANGES)
def test_a_config_that_does_not_fit_ends_in_a_sentence(fault, theirs, tmp_path):
    """transformers cannot fill a missing matrix of bytes with random numbers, and says only that."""
    folder = Path(theirs["nf4"]["path"])
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    own = {"quantization_config": config["quantization_config"] | CHANGES[fault].get("quantization_config", {})}
    (tmp_path / "config.json").write_text(json.dumps(config | CHANGES[fault] | own))
    with pytest.raises(UserError, match=fault):
        load(theirs["nf4"] | {"path": str(tmp_path)}, "bfloat16")


def test_an_awq_checkpoint_in_float32(awq_checkpoint):
    _, source, _ = awq_checkpoint
    model = load(source, "float32")
    logits = model(IDS).logits
    assert dtype_of(model) == "float32"
    assert (logits.dtype, bool(logits.isfinite().all())) == (torch.float32, True)
