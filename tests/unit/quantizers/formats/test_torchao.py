"""torchao, by the library itself through transformers."""

import pytest
import torch
import transformers

from quantharm.forensics.checks import kernel
from quantharm.forensics.checks.kernel import check_kernel
from quantharm.forensics.checks.logits import mean_kl
from quantharm.models.compute import multiplies_bytes_exactly
from quantharm.quantizers.formats import torchao

# kind → bits a weight of the 64-wide model: codes of a byte, a float32 scale and an 8-bit zero point a row (or group)
BITS = {"int8": 8.5556, "int8_dynamic": 8.5556, "float8": 8.4444, "intx4": 8.7500}


EXACT_BYTES = pytest.mark.skipif(
    not multiplies_bytes_exactly(), reason="PyTorch multiplies 8-bit integers wrongly on this processor (no VNNI)"
)
KINDS = [pytest.param(kind, marks=EXACT_BYTES if kind == "int8_dynamic" else ()) for kind in BITS]


def config_of(kind: str):
    import torchao.quantization as library

    return {
        "int8": lambda: library.Int8WeightOnlyConfig(version=2),
        "int8_dynamic": lambda: library.Int8DynamicActivationInt8WeightConfig(version=2),
        "float8": library.Float8WeightOnlyConfig,
        "intx4": lambda: library.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=library.PerGroup(32)),
    }[kind]()


@pytest.fixture(scope="module")
def theirs(tiny, save_checkpoint, byte_tokenizer, tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("torchao"), {}
    save_checkpoint(tiny("llama", torch.bfloat16), folder / "source")

    def make(kind: str):
        if kind not in made:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder / "source",
                dtype=torch.bfloat16,
                device_map={"": "cpu"},
                quantization_config=transformers.TorchAoConfig(config_of(kind)),
            )
            model.save_pretrained(folder / kind)
            byte_tokenizer().save_pretrained(folder / kind)
            made[kind] = folder / kind
        return made[kind]

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_read_as_transformers_reads_it(kind, theirs, foreign, bare_logits, passes, logits_of):
    cell = foreign(theirs(kind), "bfloat16")
    assert len(cell.matrices) == 14
    assert not any(m.held_dequantized for m in cell.matrices)
    assert all((m.round_inputs is not None) == (kind == "int8_dynamic") for m in cell.matrices)
    assert passes(cell, BITS[kind]) < 0.01
    for matrix in cell.matrices:  # as the library's own tensor unpacks itself
        own = cell.model.get_submodule(matrix.name).weight.dequantize().float()
        torch.testing.assert_close(matrix.dequantize(), own, rtol=2**-7, atol=1e-6)
    if cell.model.dtype == torch.bfloat16:
        assert mean_kl(bare_logits(theirs(kind), "bfloat16"), logits_of(cell)) < 1e-9


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.values[0] in ("float8", "int8_dynamic")])
def test_in_a_float32_model_its_layers_keep_their_dtype(kind, theirs, foreign, passes, logits_of):
    cell = foreign(theirs(kind))
    assert passes(cell, BITS[kind]) < 0.01
    assert logits_of(cell).dtype == torch.float32
    assert cell.model.lm_head.weight.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("granularity", ["PerRow", "PerTensor"])
@pytest.mark.parametrize("kind", ["float8", "symmetric", "asymmetric"])
def test_inputs_are_rounded_as_the_library_rounds_them(kind, granularity, dtype):
    """Float8's own kernels need a GPU, but its rounding of inputs does not."""
    from torchao.quantization import granularity as granularities
    from torchao.quantization.quant_primitives import MappingType
    from torchao.quantization.quantize_.common import _choose_quant_func_and_quantize_tensor
    from torchao.quantization.quantize_.workflows.float8.float8_tensor import QuantizeTensorToFloat8Kwargs
    from torchao.quantization.quantize_.workflows.int8.int8_tensor import QuantizeTensorToInt8Kwargs

    values = (torch.randn(16, 512, generator=torch.Generator().manual_seed(0)) + 0.3).to(dtype)
    arguments = {"granularity": getattr(granularities, granularity)()}
    data = {"granularity": {"_type": granularity}}
    if kind == "float8":
        own = QuantizeTensorToFloat8Kwargs(**arguments)
    else:
        own = QuantizeTensorToInt8Kwargs(mapping_type=MappingType[kind.upper()], **arguments)
        data["mapping_type"] = {"_data": kind.upper()}
    held = _choose_quant_func_and_quantize_tensor(values, own)
    zero = held.zero_point.float() if kind != "float8" else 0.0
    rounding = torchao.rounding_of({"act_quant_kwargs": {"_type": type(own).__name__, "_data": data}}, dtype)
    assert torch.equal(rounding(values.float()), (held.qdata.float() - zero) * held.scale)


def test_a_changed_scale_fails_the_kernel_check(theirs, foreign):
    cell = foreign(theirs("int8"), "bfloat16")
    cell.model.get_submodule("model.layers.1.mlp.down_proj").weight.scale[:8] *= 3
    assert check_kernel(cell.model, cell.matrices, [0, 5, 77, 200])["status"] == "fail"


def test_wrong_products_of_bytes_fail_the_kernel_check_which_says_so(theirs, foreign, monkeypatch):
    """As on processors without VNNI, where sums saturate."""
    right = torch._int_mm
    monkeypatch.setattr(torch, "_int_mm", lambda *given: right(*given).clamp(-20_000, 20_000))
    monkeypatch.setattr(kernel, "multiplies_bytes_exactly", multiplies_bytes_exactly.__wrapped__)
    cell = foreign(theirs("int8_dynamic"), "bfloat16")
    check = check_kernel(cell.model, cell.matrices, list(range(2, 66)))
    assert check["status"] == "fail", check
    assert check["explanation"].endswith("multiplies 8-bit integers wrongly on this processor (no VNNI instructions)")


@pytest.mark.parametrize("kind", ["int8", "float8", "intx4"])
def test_one_wrong_scale_in_the_file_is_noticed(kind, theirs, foreign, with_wrong_scale):
    tensor = "model.layers.1.mlp.down_proj._weight_scale"
    assert with_wrong_scale(foreign(theirs(kind), "bfloat16"), tensor, (5, 0))["status"] == "fail"


def test_the_layout_for_gpus_is_refused_on_a_cpu():
    stated = {"quant_type": {"default": {"_type": "Int4WeightOnlyConfig"}}}
    assert "made for GPUs" in torchao.unreadable(stated, "cpu")
    assert torchao.unreadable(stated, "cuda") is None
