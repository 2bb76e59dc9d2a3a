"""Processors with and without 16-bit instructions, each played by the answers to the question for them."""

import copy
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from stage_chain import Chain

from quantharm import quantize
from quantharm.common import provenance
from quantharm.common.errors import UserError
from quantharm.common.files import read_json
from quantharm.forensics.checks.texts import SAME_PROMPTS_KEYS, check_same_text
from quantharm.models import compute
from quantharm.models.loading import load_as_stored, load_cell
from quantharm.quantizers import awq, quantized_layers
from quantharm.quantizers.formats import awq as awq_format
from quantharm.reporting.reading import require_comparable
from quantharm.reporting.tables.overview import ran_on_one_device
from quantharm.scoring.forward import last_hidden_states, output_head

TOKENS = [0, *range(20, 240, 9)]
SIZES = ["weight_bytes", "loaded_dtype", "bits_per_weight", "bits_per_weight_formula", "parameters"]
CELLS = ["plain_cell", "int8_tiny", "nf4_tiny", "awq_cell"]


@pytest.fixture
def processor(monkeypatch):
    """processor(bfloat16, float16): whether this one has instructions for products of the two."""

    def play(bfloat16: bool, float16: bool) -> None:
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: bfloat16)
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: float16)

    return play


@pytest.fixture(scope="module")
def source(tiny, save_checkpoint, tmp_path_factory):
    """A tied bfloat16 model whose file holds float32 numbers: loading it in float32 would give other weights."""
    return save_checkpoint(tiny("llama_tied"), tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def plain_cell(make_cell, source):
    return make_cell(source, "unquantized")


@pytest.fixture(scope="module")
def int8_tiny(make_cell, source):
    return make_cell(source, "bitsandbytes_int8", {"threshold": 6.0})


@pytest.fixture(scope="module")
def nf4_tiny(make_cell, source):
    return make_cell(source, "bitsandbytes_4bit", {"quant_type": "nf4", "double_quantization": True})


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("float16", [False, True])
def test_a_dtype_is_multiplied_as_such_only_where_there_are_instructions(processor, dtype, bfloat16, float16):
    processor(bfloat16, float16)
    fast = {"bfloat16": bfloat16, "float16": float16, "float32": True}[dtype]
    assert compute.compute_dtype(dtype, "cpu") == (dtype if fast else "float32")
    assert compute.compute_dtype(dtype, "cuda") == dtype


def test_the_baselines_logits_are_those_of_its_16_bit_weights_in_float64(processor, plain_cell):
    exact = copy.deepcopy(load_as_stored(plain_cell.record, "cpu")).double()
    expected = exact(input_ids=torch.tensor([TOKENS])).logits[0]
    differences = {}
    for fast in (True, False):
        processor(fast, fast)
        model = load_cell(plain_cell.record, "cpu")
        logits = output_head(model)(last_hidden_states(model, TOKENS)).double()
        differences[fast] = float((logits - expected).norm() / expected.norm())
    assert differences[False] < 1e-5 < 1e-3 < differences[True]


def test_weights_stay_tied(processor, plain_cell):
    processor(False, False)
    model = load_cell(plain_cell.record, "cpu")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_16_bit_parameters_and_buffers_become_float32_and_integers_stay():
    module = torch.nn.Linear(3, 2, dtype=torch.bfloat16)
    module.register_buffer("wide", torch.tensor([1.5, 0.1], dtype=torch.float16))
    module.register_buffer("packed", torch.arange(3, dtype=torch.uint8))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    compute.to_float32(torch.nn.Sequential(module))
    for name, tensor in module.state_dict().items():
        assert tensor.dtype == (torch.uint8 if name == "packed" else torch.float32)
        assert torch.equal(tensor, before[name].to(tensor.dtype))


class OfALibrary(torch.Tensor):
    """A tensor of a class of its own, as quantized ones are."""


def test_a_librarys_own_kind_of_tensor_stays():
    module = torch.nn.Linear(3, 2, bias=False)
    module.weight = torch.nn.Parameter(torch.ones(2, 3, dtype=torch.bfloat16).as_subclass(OfALibrary))
    compute.to_float32(module)
    assert (type(module.weight.data), module.weight.dtype) == (OfALibrary, torch.bfloat16)


class AWQuantLinear(SimpleNamespace):
    """A layer as the format's module sees it: it is known by its class's name."""


@pytest.mark.parametrize("bias", [None, torch.linspace(-3, 3, 16, dtype=torch.float16)], ids=["without", "with"])
def test_an_awq_layer_in_float32_is_its_codes_and_scales_and_bias(bias):
    random = torch.Generator().manual_seed(0)
    group, inputs, outputs = 32, 64, 16
    packed = {
        "qweight": torch.randint(-(2**31), 2**31, (inputs, outputs // 8), generator=random).int(),
        "qzeros": torch.randint(-(2**31), 2**31, (inputs // group, outputs // 8), generator=random).int(),
        "scales": torch.rand(inputs // group, outputs, generator=random).half(),
    }
    layer = AWQuantLinear(**packed, bias=bias, bits=4, group_size=group)
    awq_format.multiply_in_float32(layer)
    weight = awq_format.codes(packed, group).double() * packed["scales"].double().repeat_interleave(group, 0).t()
    x = torch.randn(5, inputs, generator=random)
    expected = x.double() @ weight.t() + (0 if bias is None else bias.double())
    assert layer.forward(x).double() == pytest.approx(expected, rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("cell", CELLS[1:])
def test_quantized_layers_multiply_in_float32(processor, cell, request):
    processor(False, False)
    cell = request.getfixturevalue(cell)
    model = load_cell(cell.record, "cpu")
    assert model.dtype == torch.float32
    matrices = quantized_layers.quantized_matrices(model, cell.checkpoint, cell.record["quantizer"])
    for rows in (1, 9):  # decoding and prefill
        for matrix in matrices:
            inputs = torch.randn(rows, matrix.columns, generator=torch.Generator().manual_seed(rows))
            outputs = model.get_submodule(matrix.name)(inputs)
            assert outputs.dtype == torch.float32
            limit = 2e-6
            if matrix.round_inputs:
                limit = 2e-5  # bitsandbytes multiplies by 6.200124e-05 for 1 / 127²: 1.8e-5 too much
                expected = matrix.round_inputs(inputs) @ matrix.dequantize().t()
            else:
                expected = inputs.double() @ matrix.dequantize().double().t()
            assert float((outputs - expected).norm() / expected.norm()) < limit, matrix.name


@pytest.mark.parametrize("cell", CELLS)
def test_sizes_are_those_of_what_is_stored(processor, cell, request):
    cell = request.getfixturevalue(cell)
    sizes = []
    for fast in (True, False):
        processor(fast, fast)
        record = quantize.inspect_checkpoint(cell.record, "cpu")
        sizes.append({key: record[key] for key in SIZES})
    assert sizes[0] == sizes[1]
    assert sizes[0]["loaded_dtype"] == cell.record["dtype"]


# ---------------------------------------------------------------- AWQ's search


@pytest.fixture(scope="module")
def awq_inputs(tiny, save_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("awq-source")
    model = tiny("llama", torch.bfloat16, hidden_size=128, intermediate_size=256, num_hidden_layers=1)
    text = folder / "calibration.txt"
    text.write_text("One sentence of many words, again and again, with 7 numbers and 12 more. " * 20, encoding="utf-8")
    return save_checkpoint(model, folder / "model"), text


def awq_tensors(inputs, output) -> dict[str, torch.Tensor]:
    source, text = inputs
    settings = {name: schema.get("default") for name, schema in awq.SETTINGS.items()}
    settings |= {"group_size": 32, "calibration_samples": 4, "calibration_tokens": 64}
    output.mkdir()
    awq.quantize(source, settings, "bfloat16", "cpu", 1, output, text)
    return {name: tensor for path in output.glob("*.safetensors") for name, tensor in load_file(path).items()}


def test_awqs_search_in_float32_chooses_as_one_in_float64(processor, awq_inputs, tmp_path, monkeypatch):
    processor(True, True)
    fast = awq_tensors(awq_inputs, tmp_path / "fast")
    processor(False, False)
    slow = awq_tensors(awq_inputs, tmp_path / "slow")
    monkeypatch.setattr(compute, "to_float32", lambda model: model.double())
    exact = awq_tensors(awq_inputs, tmp_path / "exact")
    kinds = [{name: (t.dtype, t.shape) for name, t in tensors.items()} for tensors in (fast, slow, exact)]
    assert kinds[0] == kinds[1] == kinds[2]  # what is saved takes the same bytes
    assert {t.dtype for t in slow.values()} == {torch.int32, torch.float16, torch.bfloat16}
    for name in [name for name in exact if name.endswith("norm.weight")]:  # they hold the scales that were chosen
        assert torch.allclose(slow[name].float(), exact[name].float(), rtol=0.01, atol=1e-6), name
    differences = {}
    for name in [name.removesuffix(".qweight") for name in exact if name.endswith(".qweight")]:
        mine, expected, rough = (matrix_of(tensors, name) for tensors in (slow, exact, fast))
        differences[name] = [float((m - expected).norm() / expected.norm()) for m in (mine, rough)]
    # A group whose scale rounds to the next float16 moves a few codes; bfloat16 rounds every scaled weight.
    assert max(mine for mine, _ in differences.values()) < 0.05, differences
    assert max(rough for _, rough in differences.values()) > 0.1, differences


def matrix_of(tensors: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    own = {key: tensors[f"{name}.{key}"] for key in ("qweight", "qzeros", "scales")}
    return awq_format.codes(own, 32) * own["scales"].float().repeat_interleave(32, dim=0).t()


# ---------------------------------------------------------------- what is compared


def computed(**changed) -> dict:
    cpu = {"compute_dtype": "bfloat16", "instruction_set": "AVX512", "onednn_instruction_set": "Intel AVX-512"}
    return {"device": "CPU: x", "dtype": "bfloat16", "versions": {"torch": "2.13.0"}} | cpu | changed


def test_provenance_tells_two_processors_of_one_name_apart(processor):
    records = []
    for fast in (True, False):
        processor(fast, fast)
        records.append(provenance.provenance("cpu", "bfloat16", compute.compute_dtype("bfloat16", "cpu")))
    assert provenance.computed_differently(*records) == {"compute_dtype": ("bfloat16", "float32")}
    assert records[0]["instruction_set"] == torch.backends.cpu.get_cpu_capability()
    assert records[0]["onednn_instruction_set"]


def test_a_limit_for_the_libraries_is_seen():
    """In a process of its own: they read it once."""
    code = (
        "from quantharm.common.provenance import how_computed; from quantharm.models.compute import compute_dtype;"
        "print(how_computed('cpu', compute_dtype('bfloat16', 'cpu')))"
    )
    limits = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    environment = {"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"} | limits
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "'compute_dtype': 'float32'" in run.stdout
    assert "'instruction_set': 'DEFAULT'" in run.stdout
    assert "SSE4.1" in run.stdout
    assert "onednn_verbose" not in run.stdout


KEYS = ["compute_dtype", "instruction_set", "onednn_instruction_set", "compute_capability", "tf32"]


@pytest.mark.parametrize("stage", ["perplexity", "generation", "divergence"])
@pytest.mark.parametrize("key", KEYS)
def test_same_text_and_the_report_refuse_what_was_computed_otherwise(stage, key):
    text = dict.fromkeys(["dataset_sha256", "tokens_sha256", "protocol", "trace_sha256"], "x")
    suite = dict.fromkeys(SAME_PROMPTS_KEYS, "x")
    stages = ("quantization", "perplexity", "generation", "divergence", "checks")
    baseline = {name: text | suite | {"provenance": computed()} for name in stages}
    cell = copy.deepcopy(baseline)
    require_comparable([as_cell(baseline), as_cell(cell)])
    assert check_same_text(cell, baseline)["status"] == "pass"
    cell[stage]["provenance"][key] = "other"
    check = check_same_text(cell, baseline)
    assert (check["status"], check["value"]) == ("fail", 1)
    assert f"{stage} {key} ('other', the baseline {computed().get(key)!r})" in check["explanation"]
    with pytest.raises(UserError, match=f"{stage} with {key} 'other'"):
        require_comparable([as_cell(baseline), as_cell(cell)])
    results = [SimpleNamespace(device="CPU: x", baseline=as_cell(records)) for records in (baseline, cell)]
    same_speed = stage != "generation" or key == "compute_dtype"
    assert ran_on_one_device(results) is same_speed


def as_cell(records: dict):
    return SimpleNamespace(method="m", row={"model": "x"}, **records)


def test_a_store_filled_in_bfloat16_is_refused_by_a_cell_that_computes_in_float32(
    processor, source, tmp_path, monkeypatch
):
    chain = Chain(tmp_path, source, monkeypatch)
    processor(True, True)
    for stage in ("quantize", "generation", "logits"):
        chain.call(stage, **({"dtype": "bfloat16"} if stage == "quantize" else {}))
    assert read_json(tmp_path / "baseline/logits.json")["metadata"]["compute_dtype"] == "bfloat16"
    assert read_json(tmp_path / "baseline/generation.json")["provenance"]["compute_dtype"] == "bfloat16"
    processor(False, False)
    message = chain.fails("divergence")
    assert "compute_dtype 'bfloat16', but this cell has 'float32'" in message
    processor(True, True)
    chain.call("divergence")
    assert read_json(tmp_path / "baseline/divergence.json")["store"]["compute_dtype"] == "bfloat16"
