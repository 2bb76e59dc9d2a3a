"""Each quantizer: what its checkpoint stands for, what it weighs, and how it loads."""

import inspect
import json
import warnings

import bitsandbytes.functional
import pytest
import torch
from safetensors.torch import load_file

from quantharm.config.methods import method_schema, quantizer_names
from quantharm.config.validation import with_defaults
from quantharm.models import loading
from quantharm.models.loading import load_as_stored, load_cell, load_checkpoint
from quantharm.quantizers import awq, quantizable, quantized_layers, quantizer_named
from quantharm.quantizers.calibration_samples import pack_calibration
from quantharm.quantizers.formats import awq as awq_format
from quantharm.quantizers.formats.activations import llm_int8

GROUP = 64
# Shapes of the reference model's matrices in each layer, from its config: width 256, MLP 768, 2 key-value heads of 64.
SHAPES = {
    "self_attn.q_proj": (256, 256),
    "self_attn.k_proj": (128, 256),
    "self_attn.v_proj": (128, 256),
    "self_attn.o_proj": (256, 256),
    "mlp.gate_proj": (768, 256),
    "mlp.up_proj": (768, 256),
    "mlp.down_proj": (256, 768),
}
WEIGHTS = 8 * sum(rows * columns for rows, columns in SHAPES.values())


@pytest.fixture(scope="module")
def nf4_single_cell(make_cell, reference_source):
    return make_cell(reference_source, "bitsandbytes_4bit", {"quant_type": "nf4", "double_quantization": False})


@pytest.fixture(scope="module")
def fp4_cell(make_cell, tiny, save_checkpoint, tmp_path_factory):
    source = save_checkpoint(tiny("llama"), tmp_path_factory.mktemp("tiny"))
    return make_cell(source, "bitsandbytes_4bit", {"quant_type": "fp4", "double_quantization": True})


# ---------------------------------------------------------------- which matrices


@pytest.mark.parametrize("cell", ["nf4_cell", "int8_cell"])
def test_all_56_matrices_are_found_and_nothing_else(cell, request):
    cell = request.getfixturevalue(cell)
    expected = {f"model.layers.{i}.{kind}": shape for i in range(8) for kind, shape in SHAPES.items()}
    assert {m.name: (m.rows, m.columns) for m in cell.matrices} == expected
    assert len(cell.record["quantized_modules"]) == 56
    assert cell.record["quantized_weights"] == WEIGHTS
    assert cell.record["parameters"] == pytest.approx(10.49e6, rel=1e-3)


@pytest.mark.parametrize("cell", ["nf4_cell", "int8_cell"])
def test_the_output_head_is_not_quantized(cell, request, reference_weights):
    cell = request.getfixturevalue(cell)
    assert quantizable.head_name(cell.model) == "lm_head"
    assert type(cell.model.lm_head) is torch.nn.Linear
    assert torch.equal(cell.model.lm_head.weight, reference_weights["lm_head.weight"])
    assert cell.record["kept_modules"] == ["lm_head"]
    assert cell.record["output_head"] == "lm_head"


def test_the_baseline_has_no_quantized_matrix(baseline_cell, reference_weights):
    assert baseline_cell.matrices == []
    assert baseline_cell.record["bits_per_weight"] is None
    assert len(baseline_cell.record["kept_modules"]) == 57
    for name, tensor in baseline_cell.model.state_dict().items():
        assert torch.equal(tensor, reference_weights[name]), name


@pytest.mark.parametrize("quantizer", ["unquantized", "bitsandbytes_4bit", "bitsandbytes_int8", "compressed_tensors"])
def test_biases_of_quantized_matrices_are_parameters_too(quantizer, make_cell, tiny, save_checkpoint, tmp_path_factory):
    """Else a quantized Qwen2 would have fewer parameters than its original."""
    model = tiny("qwen2", torch.bfloat16, tie_word_embeddings=True)
    source = save_checkpoint(model, tmp_path_factory.mktemp("biased"))
    settings = {key: value.get("default") for key, value in quantizer_named(quantizer).SETTINGS.items()}
    cell = make_cell(source, quantizer, settings | {"group_size": 32})
    attention = 64 * 64 * 2 + 32 * 64 * 2 + 64 + 32 + 32  # four matrices, three biases
    assert cell.record["parameters"] == 384 * 64 + 2 * (attention + 3 * 64 * 128 + 2 * 64) + 64


def test_awq_matrices_are_found(awq_cell, awq_checkpoint):
    assert {m.name for m in awq_cell.matrices} == set(awq_checkpoint[2])
    assert len(awq_cell.matrices) == 14
    assert awq_cell.record["kept_modules"] == ["lm_head"]


# ---------------------------------------------------------------- what a matrix stands for


@pytest.mark.parametrize("cell", ["nf4_cell", "nf4_single_cell", "fp4_cell"])
def test_4_bit_dequantizes_as_the_library_does(cell, request):
    cell = request.getfixturevalue(cell)
    model = load_cell(cell.record, "cpu")  # anew: on a CPU bitsandbytes repacks weights at the first forward pass
    for matrix in cell.matrices:
        weight = model.get_submodule(matrix.name).weight
        theirs = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state).float()
        ours = matrix.dequantize()
        assert ours.shape == (matrix.rows, matrix.columns)
        # theirs is rounded to bfloat16 at the end: half of 2⁻⁷ relative
        torch.testing.assert_close(ours, theirs, rtol=2**-8, atol=1e-9)


def test_4_bit_stands_for_the_source_weights(nf4_cell, reference_weights):
    for matrix in nf4_cell.matrices[:7]:
        source = reference_weights[f"{matrix.name}.weight"].float()
        error = (matrix.dequantize() - source).norm() / source.norm()
        assert 0.05 < error < 0.12  # NF4 in blocks of 64 on near-normal weights: about 0.09


def test_nf4_levels_are_those_of_the_paper(nf4_single_cell):
    matrix = nf4_single_cell.matrices[0]
    blocks = matrix.dequantize().reshape(-1, 64)
    relative = (blocks / blocks.abs().amax(1, keepdim=True)).unique()
    levels = torch.tensor([-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0])
    for level in levels:
        assert (relative - level).abs().min() < 1e-5


def test_int8_dequantizes_as_codes_times_scale_of_127(int8_cell):
    for matrix in int8_cell.matrices:
        module = int8_cell.model.get_submodule(matrix.name)
        weight = module.weight
        codes = weight.data if weight.data.dtype == torch.int8 else module.state.CB
        scales = weight.SCB if weight.SCB is not None else module.state.SCB
        assert codes.dtype == torch.int8
        torch.testing.assert_close(matrix.dequantize(), codes.float() * scales.float()[:, None] / 127)


def test_int8_stands_for_the_source_weights(int8_cell, reference_weights):
    for matrix in int8_cell.matrices[:7]:
        source = reference_weights[f"{matrix.name}.weight"].float()
        step = source.abs().amax(1, keepdim=True) / 127
        # bitsandbytes rounds the weights to float16 first, which holds nothing below 6e-8
        assert ((matrix.dequantize() - source).abs() <= 0.6 * step + 6e-8).all()


def test_awq_dequantizes_what_was_packed_by_hand(awq_cell, awq_checkpoint):
    for matrix in awq_cell.matrices:
        torch.testing.assert_close(matrix.dequantize(), awq_checkpoint[2][matrix.name], rtol=1e-6, atol=1e-7)


def test_an_awq_model_computes_with_what_was_packed_by_hand(awq_cell, awq_checkpoint, tiny):
    """End to end: the loaded kernels against a plain model that holds the same matrices."""
    plain = tiny("llama", torch.float16, hidden_size=128, intermediate_size=256, max_position_embeddings=256).float()
    for name, values in awq_checkpoint[2].items():
        plain.get_submodule(name).weight.copy_(values)
    ids = torch.tensor([[0, 5, 77, 200, 31, 8]])
    ours, expected = awq_cell.model(ids).logits.float(), plain(ids).logits
    assert (ours - expected).norm() / expected.norm() < 0.02


def test_awq_packed_in_another_order_would_be_noticed(awq_checkpoint):
    name, values = next(iter(awq_checkpoint[2].items()))
    unpacked = awq_format.dequantize(awq_checkpoint[0], name, GROUP)
    torch.testing.assert_close(unpacked, values, rtol=1e-6, atol=1e-7)
    shuffled = values.reshape(-1, 8, values.shape[1])[:, [0, 4, 1, 5, 2, 6, 3, 7]].reshape(values.shape)
    assert (unpacked - shuffled).abs().max() > 0.01


# ---------------------------------------------------------------- bits a weight


def bits(table_and_scale_bytes, bits_a_weight: int) -> float:
    total = 8 * sum(
        bits_a_weight * rows * columns / 8 + table_and_scale_bytes(rows, columns) for rows, columns in SHAPES.values()
    )
    return 8 * total / WEIGHTS


def test_bits_of_nf4_by_hand(nf4_single_cell):
    expected = bits(lambda r, c: 4 * r * c / 64 + 64, 4)  # a float32 scale a block and 16 float32 levels
    assert expected == pytest.approx(4.5, abs=0.01)
    assert nf4_single_cell.record["bits_per_weight_formula"] == pytest.approx(expected, rel=1e-12)
    assert nf4_single_cell.record["bits_per_weight"] == pytest.approx(expected, rel=1e-12)


def test_bits_of_nf4_with_double_quantization_by_hand(nf4_cell):
    def scales(rows, columns):
        blocks = rows * columns // 64
        return blocks + 4 * blocks / 256 + 4 + 64 + 1024  # 8-bit scales, their scales, an offset, two tables

    expected = bits(scales, 4)
    assert nf4_cell.record["bits_per_weight_formula"] == pytest.approx(expected, rel=1e-12)
    assert nf4_cell.record["bits_per_weight"] == pytest.approx(expected, rel=1e-12)
    tables = 8 * 56 * (64 + 1024 + 4) / WEIGHTS
    assert expected - tables == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), rel=1e-9)  # 4.127: the paper's figure


def test_bits_of_int8_by_hand(int8_cell):
    expected = bits(lambda r, c: 4 * r, 8)
    assert expected == pytest.approx(8.1, abs=0.02)
    assert int8_cell.record["bits_per_weight_formula"] == pytest.approx(expected, rel=1e-12)
    assert int8_cell.record["bits_per_weight"] == pytest.approx(expected, rel=1e-12)


def test_bits_of_awq_by_hand(awq_cell):
    expected = 4 + (16 + 4) / GROUP  # a float16 scale and a 4-bit zero point a group
    assert awq_cell.record["bits_per_weight_formula"] == pytest.approx(expected, rel=1e-12)
    assert awq_cell.record["bits_per_weight"] == pytest.approx(expected, rel=0.03)


def test_bits_are_weighted_by_the_size_of_the_matrices():
    matrices = [
        quantized_layers.QuantizedMatrix("a", 10, 10, 100, 50.0, dequantize=None),
        quantized_layers.QuantizedMatrix("b", 10, 30, 100, 150.0, dequantize=None),
    ]
    assert quantized_layers.bits_per_weight(matrices) == (4.0, 4.0)
    assert quantized_layers.bits_per_weight([]) == (None, None)


# ---------------------------------------------------------------- bytes loaded


def test_loaded_bytes_by_hand(baseline_cell, nf4_cell, int8_cell):
    rest = 2 * (10_490_112 - WEIGHTS)  # embedding, head and norms in bfloat16
    rotary = sum(b.numel() * b.element_size() for b in baseline_cell.model.buffers())
    assert baseline_cell.record["weight_bytes"] == 2 * 10_490_112 + rotary
    for cell in (nf4_cell, int8_cell):
        matrices = cell.record["bits_per_weight_formula"] * WEIGHTS / 8
        assert cell.record["weight_bytes"] == pytest.approx(rest + rotary + matrices, rel=1e-3)


def test_tied_weights_are_counted_once(tiny):
    tied, untied = tiny("llama_tied"), tiny("llama")
    assert quantized_layers.model_bytes(untied) - quantized_layers.model_bytes(tied) == 4 * 384 * 64
    untied.lm_head.weight = torch.nn.Parameter(untied.model.embed_tokens.weight.data)  # another object, one storage
    assert quantized_layers.model_bytes(untied) == quantized_layers.model_bytes(tied)


# ---------------------------------------------------------------- saving and loading


def test_nf4_settings_are_all_set(nf4_cell, nf4_single_cell, fp4_cell):
    for cell, kind, nested in [(nf4_cell, "nf4", True), (nf4_single_cell, "nf4", False), (fp4_cell, "fp4", True)]:
        module = load_as_stored(cell.record, "cpu").get_submodule(cell.matrices[0].name)  # before any forward pass
        assert module.weight.quant_state.quant_type == kind
        assert module.weight.quant_state.nested is nested
        assert module.compute_dtype == torch.bfloat16


@pytest.mark.parametrize("threshold", [0.0, 3.5])
def test_int8_threshold_reaches_the_modules_and_the_disk(make_cell, tiny, save_checkpoint, tmp_path, threshold):
    source = save_checkpoint(tiny("mistral", torch.bfloat16), tmp_path / "source")
    cell = make_cell(source, "bitsandbytes_int8", {"threshold": threshold})
    inputs = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)).half().float() * 2
    for matrix in cell.matrices:
        wide = inputs.repeat(1, matrix.columns // 64)
        assert torch.equal(matrix.round_inputs(wide), llm_int8(wide, threshold))


def test_a_quantized_checkpoint_holds_safetensors_and_packed_codes(nf4_cell):
    files = sorted(p.name for p in nf4_cell.checkpoint.iterdir())
    assert "config.json" in files
    assert not [f for f in files if f.endswith((".bin", ".pt"))]
    tensors = {k: t for p in nf4_cell.checkpoint.glob("*.safetensors") for k, t in load_file(p).items()}
    assert tensors["model.layers.0.mlp.up_proj.weight"].dtype == torch.uint8
    assert tensors["model.layers.0.mlp.up_proj.weight"].numel() == 768 * 256 // 2


@pytest.mark.parametrize(("quantizer", "cell"), [("bitsandbytes_4bit", "nf4_cell"), ("bitsandbytes_int8", "int8_cell")])
def test_many_files_are_the_same_model(make_cell, reference_source, monkeypatch, quantizer, cell, request):
    """Some matrices lie in one file and their scales in the next."""
    whole = request.getfixturevalue(cell)
    monkeypatch.setattr(loading, "LARGEST_FILE", "64KB")
    parts = make_cell(reference_source, quantizer, whole.record["settings"])
    assert len(whole.record["weight_files"]) == 1
    file_of = json.loads((parts.checkpoint / "model.safetensors.index.json").read_text())["weight_map"]
    assert any(len({f for n, f in file_of.items() if n.startswith(f"{m.name}.")}) > 1 for m in parts.matrices)
    tokens = torch.arange(5, 60)[None]
    assert torch.equal(parts.model(input_ids=tokens).logits, whole.model(input_ids=tokens).logits)
    for mine, other in zip(parts.matrices, whole.matrices, strict=True):
        assert torch.equal(mine.dequantize(), other.dequantize())


def test_the_baseline_is_a_pointer_and_no_copy(baseline_cell, reference_source):
    assert baseline_cell.record["checkpoint"] == reference_source["path"]


def test_a_model_with_pickled_weights_can_be_quantized_when_it_is_allowed(make_cell, tiny, save_checkpoint, tmp_path):
    folder = tmp_path / "pickled"
    model = tiny("llama", torch.bfloat16)
    save_checkpoint(model, folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    from quantharm import fetch

    source = fetch.describe("pickled", str(folder), folder, None, True, False)
    cell = make_cell(source, "bitsandbytes_4bit", {"quant_type": "nf4", "double_quantization": False})
    assert len(cell.matrices) == 14


def test_a_model_with_safetensors_loads_although_pickle_is_allowed(reference_source):
    allowed = reference_source | {"allow_pickle": True}
    assert load_checkpoint(reference_source["path"], allowed, "bfloat16", "cpu", 1).num_parameters() > 10e6


# ---------------------------------------------------------------- AWQ's own


def awq_settings(**settings):
    return with_defaults({"quantizer": "awq"} | settings, method_schema("awq"))


@pytest.mark.parametrize(
    ("config", "key"),
    [({"hidden_size": 200, "intermediate_size": 256}, "hidden_size 200"), ({"intermediate_size": 100}, "100")],
)
def test_awq_refuses_widths_that_its_group_does_not_divide(config, key):
    message = awq.conflict(awq_settings(), config)
    assert "group_size 128 does not divide" in message
    assert key in message


def test_awq_accepts_widths_that_its_group_divides():
    assert awq.conflict(awq_settings(), {"hidden_size": 256, "intermediate_size": 768}) is None
    assert awq.conflict(awq_settings(group_size=32), {"hidden_size": 96}) is None
    assert awq.conflict(awq_settings(), {}) is None


def test_calibration_is_packed_to_one_length_and_count(byte_tokenizer):
    tokenizer = byte_tokenizer(bos=True)
    ids = tokenizer("abcdefghijk", add_special_tokens=False)["input_ids"]
    assert pack_calibration(tokenizer, "abcdefghijk", 10, 4) == [ids[0:4], ids[4:8]]
    assert pack_calibration(tokenizer, "abcdefghijk", 1, 4) == [ids[0:4]]
    assert pack_calibration(tokenizer, "abcdefgh", 2, 4) == [ids[0:4], ids[4:8]]
    assert pack_calibration(tokenizer, "abc", 5, 4) == []


def test_the_built_in_calibration_text_fills_what_the_config_asks(root, reference_tokenizer):
    import yaml

    text = (root / "data" / "calibration.txt").read_text(encoding="utf-8")
    method = yaml.safe_load((root / "config.yaml").read_text(encoding="utf-8"))["methods"]["awq"]
    packed = pack_calibration(reference_tokenizer, text, method["calibration_samples"], method["calibration_tokens"])
    assert len(packed) == method["calibration_samples"]
    assert {len(sample) for sample in packed} == {method["calibration_tokens"]}


def test_the_awq_kernel_is_always_named():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for device in ("cpu", "cuda"):
            assert awq_format.backend_config({}, None, device).backend == awq_format.DEFAULT_BACKEND[device]
        chosen = awq_format.backend_config({"bits": 4, "group_size": 32, "zero_point": False}, "marlin", "cuda")
    assert (chosen.backend, chosen.group_size, chosen.zero_point) == ("marlin", 32, False)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_marlin_is_told_what_it_computes_in_before_it_is_compiled(monkeypatch, dtype):
    """Else it would be compiled for float16 as well, when its layers are finished."""
    from gptqmodel.nn_modules.qlinear.marlin_awq import AwqMarlinLinear
    from gptqmodel.utils import model as gptq_model
    from transformers.quantizers.quantizer_awq import AwqQuantizer

    class Layer(torch.nn.Module):
        compute_dtype = torch.float16

    assert "marlin_runtime_available(self.compute_dtype)" in inspect.getsource(AwqMarlinLinear.post_init)
    seen = []
    monkeypatch.setattr(gptq_model, "hf_gptqmodel_post_init", lambda model, **_: seen.append(model[0].compute_dtype))
    model = torch.nn.Sequential(Layer())
    quantizer = AwqQuantizer(awq_format.backend_config({}, "marlin", "cuda"))
    before = AwqQuantizer.update_dtype, AwqQuantizer._process_model_after_weight_loading
    with awq_format.computing_in(dtype):
        assert quantizer.update_dtype(getattr(torch, dtype)) == getattr(torch, dtype)
        quantizer._process_model_after_weight_loading(model)
    assert seen == [getattr(torch, dtype)]
    assert (AwqQuantizer.update_dtype, AwqQuantizer._process_model_after_weight_loading) == before


@pytest.mark.parametrize("name", quantizer_names())
def test_every_quantizer_declares_settings_with_descriptions(name):
    properties = method_schema(name)["properties"]
    own = {k: v for k, v in properties.items() if k not in ("quantizer", "models", "description")}
    assert all(setting.get("description") for setting in own.values())
