"""Damaged quantized checkpoints: every tensor of a matrix, taken out or cut, is named before anything is computed."""

import importlib
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from quantharm.common.errors import UserError
from quantharm.quantizers import pretrained

MATRIX = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def tiny_llama(tiny, save_checkpoint, tmp_path_factory):
    return save_checkpoint(tiny("llama", torch.bfloat16), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def cells(make_cell, tiny_llama):
    def nf4(nested):
        settings = {"quant_type": "nf4", "double_quantization": nested}
        return make_cell(tiny_llama, "bitsandbytes_4bit", settings)

    return {
        "nf4": nf4(True),
        "nf4-single": nf4(False),
        "int8": make_cell(tiny_llama, "bitsandbytes_int8", {"threshold": 6.0}),
    }


def load_changed(cell, tmp_path, change, through=None):
    """Load a copy whose tensors `change` has altered, by the quantizer itself or by `pretrained`."""
    folder = tmp_path / "checkpoint"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(cell.checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    source = cell.record["source"]
    settings = cell.record["settings"] | {"resolved": source, "backend": None}
    quantizer = through or importlib.import_module(f"quantharm.quantizers.{cell.record['quantizer']}")
    return quantizer.load(folder, settings, source, "bfloat16", "cpu", 1)


NF4 = ["weight", "weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4"]
TENSORS = {
    "nf4": [*NF4, "weight.nested_absmax", "weight.nested_quant_map"],
    "nf4-single": NF4,
    "int8": ["weight", "SCB"],
}


@pytest.mark.parametrize(("kind", "tensor"), [(kind, tensor) for kind, names in TENSORS.items() for tensor in names])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_each_tensor_of_a_matrix_is_asked_for(cells, tmp_path, kind, tensor, damage):
    name = f"{MATRIX}.{tensor}"

    def change(tensors):
        assert name in tensors
        whole = tensors.pop(name)
        if damage == "cut":
            tensors[name] = whole[:-1].clone()

    for through in (None, pretrained):
        with pytest.raises(UserError) as caught:
            load_changed(cells[kind], tmp_path, change, through)
        assert MATRIX in str(caught.value)


@pytest.mark.parametrize("kind", ["nf4", "nf4-single", "int8"])
def test_whole_quantized_checkpoints_are_accepted_and_other_tensors_are_not(cells, tmp_path, kind):
    load_changed(cells[kind], tmp_path, lambda _: None)
    load_changed(cells[kind], tmp_path, lambda _: None, pretrained)
    with pytest.raises(UserError, match=r"1 missing.*model.norm.weight"):
        load_changed(cells[kind], tmp_path, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(UserError, match=r"1 that LlamaForCausalLM has no place for \(extra\)"):
        load_changed(cells[kind], tmp_path, lambda tensors: tensors.update(extra=torch.zeros(2)))


def test_a_matrix_of_another_shape_is_refused(cells, tmp_path):
    """Of as many weights, so that every tensor has its size: only the state says which shape was quantized."""

    def swap(tensors):
        for rest in [k for k in tensors if k.startswith("model.layers.0.mlp.down_proj.")]:
            part = rest.removeprefix("model.layers.0.mlp.down_proj.")
            other = f"model.layers.0.mlp.up_proj.{part}"
            tensors[rest], tensors[other] = tensors[other], tensors[rest]

    for kind in ("nf4", "nf4-single", "int8"):
        with pytest.raises(UserError, match=r"is damaged: \d tensors.*mlp.up_proj.weight"):
            load_changed(cells[kind], tmp_path, swap)


@pytest.mark.parametrize("tensor", ["qweight", "qzeros", "scales"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_awq_tensors_are_asked_for(awq_checkpoint, tmp_path, tensor, damage):
    folder, source, _ = awq_checkpoint
    copy = tmp_path / "checkpoint"
    shutil.copytree(folder, copy)
    tensors = load_file(copy / "model.safetensors")
    whole = tensors.pop(f"{MATRIX}.{tensor}")
    if damage == "cut":
        tensors[f"{MATRIX}.{tensor}"] = whole[:-1].clone()
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"{MATRIX}.{tensor}"):
        pretrained.load(copy, {"resolved": source, "backend": None}, source, "bfloat16", "cpu", 1)
