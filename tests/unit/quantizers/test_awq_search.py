"""What replaces parts of autoawq gives autoawq's numbers, bit for bit."""

import pytest
import torch
from safetensors.torch import load_file

from quantharm.common.text import read_text
from quantharm.quantizers.awq_search import pack, packed_linear, repaired_quantizer
from quantharm.quantizers.calibration_samples import pack_calibration
from quantharm.quantizers.formats import awq as awq_format

GROUP = 32


def pseudo_quantized(bias: bool) -> tuple[torch.nn.Linear, torch.Tensor, torch.Tensor]:
    """A float16 linear of 96 → 64 whose weights are (code - zero) × scale, with scales and zeros [3, 64]."""
    generator = torch.Generator().manual_seed(1)
    scales = torch.rand((3, 64), generator=generator).mul(0.02).add(0.001).half()
    zeros = torch.randint(16, (3, 64), generator=generator).half()
    codes = torch.randint(16, (96, 64), generator=generator).half()
    linear = torch.nn.Linear(96, 64, bias=bias).half()
    weight = (codes - zeros.repeat_interleave(GROUP, 0)) * scales.repeat_interleave(GROUP, 0)
    linear.weight.data = weight.t().contiguous()
    return linear, scales, zeros


@pytest.mark.parametrize("bias", [False, True])
def test_packing_equals_autoawqs(bias):
    from awq.modules.linear import WQLinear_GEMM

    linear, scales, zeros = pseudo_quantized(bias)
    ours = packed_linear(linear, GROUP, scales, zeros)
    theirs = WQLinear_GEMM.from_linear(linear, 4, GROUP, scales=scales, zeros=zeros)
    names = ["qweight", "qzeros", "scales"] + (["bias"] if bias else [])
    assert sorted(ours.state_dict()) == sorted(theirs.state_dict()) == sorted(names)
    for name in names:
        assert getattr(ours, name).dtype == getattr(theirs, name).dtype
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


def test_pack_by_hand():
    codes = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 15]])  # low bits first: channels 0, 2, 4, 6, 1, 3, 5, 7
    expected = sum(code << (4 * i) for i, code in enumerate([0, 2, 4, 6, 1, 3, 5, 15]))
    assert pack(codes).tolist() == [[expected - 2**32]]  # the highest bit is an int32's sign


@pytest.fixture(scope="module")
def model_folder(tiny, save_checkpoint, tmp_path_factory):
    """Two layers, with input norms that are not all ones; (folder, source record)."""
    model = tiny("mistral", hidden_size=128, intermediate_size=256, max_position_embeddings=256)
    generator = torch.Generator().manual_seed(2)
    for layer in model.model.layers:
        layer.input_layernorm.weight.mul_(torch.rand(128, generator=generator) + 0.5)
    folder = tmp_path_factory.mktemp("model")
    return folder, save_checkpoint(model, folder)


def test_awq_matrices_are_the_scaled_originals(model_folder, make_cell, root):
    """Scaling moves a factor between a layer and its norm: (norm × matrix) keeps its value, up to 4-bit rounding."""
    folder, source = model_folder
    settings = {"bits": 4, "group_size": 128, "zero_point": True, "calibration_samples": 2, "calibration_tokens": 64}
    text = root / "data/calibration.txt"
    cell = make_cell(source, "awq", settings | {"backend": None}, "float16", calibration=text)
    name, norm = "model.layers.0.self_attn.q_proj", "model.layers.0.input_layernorm.weight"
    new_norm = load_file(cell.checkpoint / "model.safetensors")[norm].float()
    original = load_file(folder / "model.safetensors")
    assert not torch.allclose(new_norm, original[norm], rtol=1e-2)  # something was moved
    folded = awq_format.dequantize(cell.checkpoint, name, 128) * new_norm
    wanted = original[f"{name}.weight"].float() * original[norm].float()
    assert (folded - wanted).norm() / wanted.norm() < 0.15


def test_autoawq_search_leaves_the_model_as_it_was(model_folder, byte_tokenizer, root):
    """Scales alone, without rounding or clipping, change nothing: the model still says the same."""
    from awq import AutoAWQForCausalLM

    tokenizer = byte_tokenizer()
    samples = pack_calibration(tokenizer, read_text(root / "data/calibration.txt"), 2, 128)
    ids = torch.tensor([samples[0]])
    model = AutoAWQForCausalLM.from_pretrained(
        str(model_folder[0]), torch_dtype=torch.float32, device_map={"": "cpu"}, safetensors=True
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
