"""What quantization does to the built-in model, by the stages, against what is known from elsewhere."""

import json

import pytest
import torch
from safetensors.torch import load_file

from quantharm.common.text import read_text
from quantharm.quantizers import awq
from quantharm.quantizers.awq_search import repaired_quantizer

pytestmark = pytest.mark.slow


def perplexity(cells, method: str) -> float:
    return json.loads((cells / method / "perplexity.json").read_text())["perplexity"]


@pytest.mark.parametrize("method", ["nf4", "awq"])
def test_four_bits_do_measurable_but_moderate_harm(cells, method):
    """An AWQ whose weights are spoilt on the way (autoawq on a CPU) would raise the perplexity tenfold."""
    change = perplexity(cells, method) / perplexity(cells, "baseline") - 1
    assert 0.01 < change < 0.15


def test_a_checkpoint_holds_what_its_record_says(cells):
    for method in ("nf4", "awq"):
        record = json.loads((cells / method / "quantization.json").read_text())
        assert len(record["quantized_modules"]) == 56
        assert record["output_head"] in record["kept_modules"]
        assert record["bits_per_weight"] == pytest.approx(record["bits_per_weight_formula"], rel=1e-6)
        assert record["checkpoint_bytes"] == sum(
            p.stat().st_size for p in (cells / method / "checkpoint").glob("*.safetensors")
        )


def test_awq_matrices_are_the_scaled_originals(cells):
    """Scaling moves a factor between a layer and its norm: (norm × matrix) keeps its value, up to 4-bit rounding."""
    name, norm = "model.layers.0.self_attn.q_proj", "model.layers.0.input_layernorm.weight"
    source = {}
    record = json.loads((cells / "awq" / "quantization.json").read_text())
    for file in record["source"]["weight_files"]:
        source |= load_file(f"{record['source']['path']}/{file['name']}")
    new_norm = load_file(cells / "awq" / "checkpoint" / "model.safetensors")[norm].float()
    folded = awq.dequantize(cells / "awq" / "checkpoint", name, 128) * new_norm
    original = source[f"{name}.weight"].float() * source[norm].float()
    assert (folded - original).norm() / original.norm() < 0.15


def test_autoawq_search_leaves_the_model_as_it_was(tmp_path):
    """Scales alone, without rounding or clipping, change nothing: the model still says the same."""
    from awq import AutoAWQForCausalLM
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained("data/reference-model")
    samples = awq.pack_calibration(tokenizer, read_text("data/calibration.txt"), 2, 128)
    ids = torch.tensor([samples[0]])
    model = AutoAWQForCausalLM.from_pretrained(
        "data/reference-model", torch_dtype=torch.float32, device_map={"": "cpu"}, safetensors=True
    )
    with torch.no_grad():
        before = model.model(ids).logits
        model.quantize(
            tokenizer,
            quant_config={"w_bit": 4, "q_group_size": 128, "zero_point": True, "version": "GEMM"},
            calib_data=samples,
            max_calib_samples=2,
            max_calib_seq_len=128,
            export_compatible=True,
            apply_clip=False,
            quantizer_cls=repaired_quantizer(),
        )
        after = model.model(ids).logits
    assert (after - before).abs().max() < 1e-2
