"""What counts as a weight that could have been quantized: experts too, and not what a foreign config leaves out."""

import json
import shutil
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from quantharm import fetch, quantize
from quantharm.common.errors import UserError
from quantharm.common.files import write_json
from quantharm.config.methods import check_method
from quantharm.forensics.checks.weights import QUANTIZED_SHARE_LIMIT, check_method_is_real
from quantharm.forensics.detection.storage import read_storage
from quantharm.forensics.detection.weights import read_matrices
from quantharm.models.loading import load_checkpoint
from quantharm.quantizers import pretrained, quantizable
from quantharm.quantizers.experts import experts_of

SHAPE = {
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
ATTENTION = 2 * 64 * 64 + 2 * 32 * 64  # of a layer
EXPERTS = 8 * 3 * 64 * 128
ROUTER = 8 * 64


def mixture():
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(transformers.MixtralConfig(**SHAPE, num_local_experts=8))


@pytest.fixture(scope="module")
def mixtral(save_checkpoint, tmp_path_factory):
    return save_checkpoint(mixture().to(torch.bfloat16), tmp_path_factory.mktemp("mixtral"))


# ---------------------------------------------------------------- which weights count


def test_experts_count_and_embeddings_and_head_do_not():
    kept = quantizable.kept_weights(mixture())
    assert sum(kept.values()) == 2 * (ATTENTION + EXPERTS + ROUTER)
    assert kept["model.layers.1.mlp.experts.gate_up_proj"] == 8 * 2 * 64 * 128
    assert not {"model.embed_tokens", "lm_head", "model.norm"} & kept.keys()


@pytest.mark.parametrize("tied", [False, True])
def test_all_linears_of_a_dense_model_count(tiny, tied):
    kept = quantizable.kept_weights(tiny("llama_tied" if tied else "llama"))
    assert sum(kept.values()) == 2 * (ATTENTION + 3 * 64 * 128)


def test_matrices_that_are_no_linear_layers_count(tiny):
    """GPT-2 keeps its matrices in a class of its own; positions are an embedding."""
    kept = quantizable.kept_weights(tiny("gpt2"))
    assert sum(kept.values()) == 2 * 12 * 64 * 64
    assert "transformer.wpe" not in kept


def test_depthwise_filters_do_not_count():
    config = transformers.MambaConfig(vocab_size=384, hidden_size=64, num_hidden_layers=1, state_size=8)
    kept = quantizable.kept_weights(transformers.AutoModelForCausalLM.from_config(config))
    mixer = "backbone.layers.0.mixer"
    assert {name.removeprefix(f"{mixer}.") for name in kept} == {"A_log", "in_proj", "x_proj", "dt_proj", "out_proj"}
    assert kept[f"{mixer}.A_log"] == 128 * 8


# ---------------------------------------------------------------- mixtures


@pytest.mark.parametrize(
    ("config", "experts"),
    [
        ({"num_local_experts": 8}, 8),
        ({"num_experts": 128, "num_experts_per_tok": 8}, 128),
        ({"text_config": {"n_routed_experts": 64}}, 64),
        ({"num_local_experts": 0}, 1),
        ({"num_experts": None}, 1),
        ({}, 1),
    ],
)
def test_experts_as_config_json_says(config, experts):
    assert experts_of(config) == experts


@pytest.mark.parametrize("quantizer", ["bitsandbytes_4bit", "bitsandbytes_int8", "awq"])
def test_methods_that_leave_experts_alone_are_refused_before_any_job(quantizer):
    entry = {"quantizer": quantizer, "group_size": 64, "zero_point": True}
    with pytest.raises(UserError, match=r"`m` cannot be applied to model `mix`: .* mixture of 8 experts"):
        check_method("m", entry, "mix", {"num_local_experts": 8})
    check_method("m", entry, "mix", {"num_local_experts": 1})


def test_the_stage_refuses_them_too_of_a_model_from_the_hub(mixtral, tmp_path, monkeypatch):
    write_json(tmp_path / "source.json", mixtral)
    flags = {"source": tmp_path / "source.json", "method": "nf4", "quantizer": "bitsandbytes_4bit", "device": "cpu"}
    flags |= {"settings": "{}", "checkpoint": tmp_path / "checkpoint", "output": tmp_path / "quantization.json"}
    monkeypatch.setattr(sys, "argv", ["quantize", *(w for k, v in flags.items() for w in (f"--{k}", str(v)))])
    with pytest.raises(UserError, match="mixture of 8 experts"):
        quantize.main()
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize("quantizer", ["bitsandbytes_4bit", "bitsandbytes_int8"])
def test_method_is_real_fails_where_experts_were_left_alone(make_cell, mixtral, quantizer):
    settings = {"quant_type": "nf4", "double_quantization": False, "threshold": 6.0}
    cell = make_cell(mixtral, quantizer, settings)
    check = check_method_is_real(cell.record, cell.matrices, cell.model)
    share = ATTENTION / (ATTENTION + EXPERTS + ROUTER)
    assert check["status"] == "fail"
    assert check["value"] == pytest.approx(share)
    assert cell.record["quantized_weights"] / cell.record["quantizable_weights"] == pytest.approx(share)
    assert "model.layers.0.mlp.experts.down_proj" in cell.record["kept_modules"]


@pytest.mark.parametrize("stacked", [False, True])
def test_the_scan_sees_experts_as_matrices(mixtral, tmp_path, stacked):
    """Stored one by one, as Mixtral's are, or as transformers holds them: one tensor of three dimensions."""
    folder = tmp_path / "m"
    shutil.copytree(mixtral["path"], folder)
    if stacked:
        state = {name: t.to(torch.bfloat16).contiguous() for name, t in mixture().state_dict().items()}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    floats = [name for name in read_storage(folder).floats if "experts" in name]
    assert len(floats) == 2 * (2 if stacked else 3 * 8)
    matrices = list(read_matrices(folder, floats))
    assert len(matrices) == 2 * (2 * 4 if stacked else 3 * 8)  # of a stack, some
    assert {(m.rows, m.columns) for m in matrices} == {(256, 64) if stacked else (128, 64), (64, 128)}


# ---------------------------------------------------------------- what a foreign config leaves out


def foreign(tiny, save_checkpoint, folder, skipped):
    """A third party's NF4 checkpoint that leaves some modules in 16 bits, and the source record of it."""
    source = save_checkpoint(tiny("llama", torch.bfloat16), folder / "original")
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=skipped, bnb_4bit_compute_dtype="bfloat16"
    )
    model = load_checkpoint(source["path"], source, "bfloat16", "cpu", 1, quantization_config=config)
    model.save_pretrained(folder / "quantized")
    return source, fetch.describe("theirs", "theirs", folder / "quantized", None, False, False)


def test_modules_that_a_foreign_config_skips_are_no_fault(tiny, save_checkpoint, tmp_path, make_cell):
    source, resolved = foreign(tiny, save_checkpoint, tmp_path, ["lm_head", "down_proj", "model.layers.0"])
    cell = make_cell(source, "pretrained", {"resolved": resolved, "backend": None})
    check = check_method_is_real(cell.record, cell.matrices, cell.model)
    assert (check["status"], check["value"]) == ("pass", 1.0)
    skipped = ATTENTION + 3 * 64 * 128 + 64 * 128  # a layer, and one matrix of the other
    assert f"excludes 8 others, {skipped / (2 * (ATTENTION + 3 * 64 * 128)):.0%} of all weights" in check["explanation"]


def test_what_it_does_not_skip_still_has_to_be_quantized(tiny, save_checkpoint, tmp_path, make_cell):
    source, resolved = foreign(tiny, save_checkpoint, tmp_path, ["lm_head", "down_proj", "model.layers.0"])
    cell = make_cell(source, "pretrained", {"resolved": resolved, "backend": None})
    path = tmp_path / "quantized" / "config.json"
    settings = json.loads(path.read_text())
    settings["quantization_config"]["llm_int8_skip_modules"] = ["lm_head", "down_proj"]  # as loaded, and now it lies
    path.write_text(json.dumps(settings))
    check = check_method_is_real(cell.record, cell.matrices, cell.model)
    assert check["status"] == "fail"
    assert check["value"] < QUANTIZED_SHARE_LIMIT


def test_a_head_that_a_foreign_config_quantizes_is_told_and_no_fault(tiny, save_checkpoint, tmp_path, make_cell):
    """A list of its own drops transformers' default, which keeps the head; of a method made here it is a fault."""
    source, resolved = foreign(tiny, save_checkpoint, tmp_path, ["down_proj"])
    cell = make_cell(source, "pretrained", {"resolved": resolved, "backend": None})
    check = check_method_is_real(cell.record, cell.matrices, cell.model)
    assert check["status"] == "pass"
    assert "head is quantized" in check["explanation"]
    mine = check_method_is_real({**cell.record, "quantizer": "bitsandbytes_4bit"}, cell.matrices, cell.model)
    assert mine["status"] == "fail"


def test_matrices_that_awq_did_not_convert_are_no_fault(awq_checkpoint, tmp_path, make_cell):
    folder, _, known = awq_checkpoint
    tensors = load_file(folder / "model.safetensors")
    left = [name for name in known if "down_proj" in name]
    for name in left:
        for part in ("qweight", "qzeros", "scales"):
            del tensors[f"{name}.{part}"]
        tensors[f"{name}.weight"] = known[name].half()
    for path in folder.iterdir():
        if path.suffix == ".json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["quantization_config"]["modules_to_not_convert"] = ["down_proj"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    resolved = fetch.describe("theirs", "theirs", tmp_path, None, False, False)
    cell = make_cell(resolved, "pretrained", {"resolved": resolved, "backend": None})
    check = check_method_is_real(cell.record, cell.matrices, cell.model)
    assert (check["status"], check["value"]) == ("pass", 1.0)
    assert "its config excludes 2 others" in check["explanation"]
    assert pretrained.inspect(left[0], cell.model.get_submodule(left[0]), tmp_path) is None
