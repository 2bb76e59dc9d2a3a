"""Layouts that are not read here: refused by one sentence, before a weight is touched."""

import json

import pytest

from quantharm.common.errors import UserError
from quantharm.quantizers import gptq, pretrained
from quantharm.quantizers.formats import families


@pytest.mark.parametrize("load", [pretrained.load, gptq.load], ids=["a third party's", "one's own"])
@pytest.mark.parametrize(
    "stated",
    [{"quant_method": "awq", "version": "marlin"}, {"quant_method": "gptq", "checkpoint_format": "marlin"}],
    ids=["AWQ", "GPTQ"],
)
def test_a_foreign_layout_is_refused_as_it_is_loaded(stated, load, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": stated}))
    source = {"path": str(tmp_path), "allow_pickle": False, "trust_remote_code": False}
    with pytest.raises(UserError, match=rf"{stated['quant_method']}\) cannot be loaded here: its layout is marlin"):
        load(tmp_path, {"resolved": source, "backend": None}, source, "bfloat16", "cpu", 1)


@pytest.mark.parametrize("method", ["fp8", "gguf", "bitsandbytes"])
def test_what_gptqmodel_writes_in_a_layout_of_its_own_is_refused(method, tmp_path):
    stated = {"quant_method": method, "meta": {"quantizer": ["gptqmodel:7.6.0"]}}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": stated}))
    with pytest.raises(UserError, match=rf"\({method}\) is in a layout of gptqmodel's own"):
        families.refuse_unreadable(tmp_path, "cpu")


@pytest.mark.parametrize("activation", ["w4afp8", {"mode": "w4afp8"}])
def test_gptq_that_rounds_inputs_is_refused(activation, tmp_path):
    stated = {"quant_method": "gptq", "bits": 4, "group_size": 128, "activation": activation}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": stated}))
    with pytest.raises(UserError, match=r"round what they are given \(`activation: w4afp8`\)"):
        families.refuse_unreadable(tmp_path, "cpu")
