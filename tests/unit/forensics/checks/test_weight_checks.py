"""The checks of quantized matrices pass on a good cell and fail on a broken one."""

import pytest
import torch

from quantharm.forensics.checks import weights
from quantharm.forensics.checks.kernel import check_kernel
from quantharm.forensics.checks.weights import check_bits_per_weight, check_method_is_real
from quantharm.quantizers import quantized_layers

CELLS = ["nf4_cell", "int8_cell", "awq_cell"]
TOKENS = [0, *range(20, 240, 9)]


@pytest.mark.parametrize("cell", CELLS)
def test_method_is_real_passes(cell, request):
    cell = request.getfixturevalue(cell)
    check = check_method_is_real(cell.record, cell.matrices, cell.model)
    assert (check["status"], check["value"]) == ("pass", 1.0)
    assert cell.record["linear_classes"][0] in check["explanation"]


def test_method_is_real_passes_on_a_baseline_that_is_one(baseline_cell):
    assert check_method_is_real(baseline_cell.record, [], baseline_cell.model)["status"] == "pass"


@pytest.mark.parametrize(
    "kind", ["llama_tied", "mistral", "qwen2", "gemma2", "cohere", "granite", "gpt2", "gpt2_untied"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_taken_for_quantized_in_a_baseline_of_any_kind(tiny, kind, dtype):
    assert quantized_layers.quantized_matrices(tiny(kind, dtype), None, "unquantized") == []


@pytest.mark.parametrize("cell", CELLS)
def test_method_is_real_fails_on_a_quantized_baseline(baseline_cell, cell, request):
    """By how the weights are held: the baseline's module knows no other quantizer. Other checks say so or step back."""
    cell = request.getfixturevalue(cell)
    matrices = quantized_layers.quantized_matrices(cell.model, cell.checkpoint, "unquantized")
    assert {m.name for m in matrices} == {m.name for m in cell.matrices}
    assert sum(m.rows * m.columns for m in matrices) == sum(m.rows * m.columns for m in cell.matrices)
    assert check_method_is_real(baseline_cell.record, matrices, cell.model)["status"] == "fail"
    measured, formula = quantized_layers.bits_per_weight(matrices)
    record = {"bits_per_weight": measured, "bits_per_weight_formula": formula}
    assert check_bits_per_weight(record)["status"] == "fail"
    assert check_kernel(cell.model, matrices, TOKENS)["status"] == "skipped"


class Disguised(torch.nn.Parameter):
    """A class of another library's whose dtype and shape say nothing about what it stores."""


class Packed(torch.nn.Module):
    """A linear layer of another library's that holds its weights in a buffer."""

    in_features, out_features = 64, 128

    def __init__(self):
        super().__init__()
        self.register_buffer("qweight", torch.zeros(8, 128, dtype=torch.int32))


class Experts(torch.nn.Module):
    """No linear layer at all, but packed codes where a model has weights."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.Parameter(torch.zeros(4, 128, 32, dtype=torch.uint8), requires_grad=False)


def plain(weight: torch.Tensor, kind=torch.nn.Parameter) -> torch.nn.Linear:
    linear = torch.nn.Linear(64, 128, bias=False)
    linear.weight = kind(weight, requires_grad=False)
    return linear


@pytest.mark.parametrize(
    "layer",
    [
        lambda weight: plain(weight.to(torch.float8_e4m3fn)),
        lambda weight: plain(weight[:, ::2].to(torch.int8)),
        lambda weight: plain(weight[:, ::4].clone()),
        lambda weight: plain(weight, Disguised),
        lambda weight: Packed(),
        lambda weight: Experts(),
    ],
    ids=[
        "8-bit floats",
        "packed integers",
        "floats that hold packed ones",
        "a class of its own",
        "a buffer",
        "experts",
    ],
)
def test_one_rounded_layer_makes_a_baseline_none(tiny, baseline_cell, layer):
    """Formats that no module here knows."""
    model = tiny("llama", torch.bfloat16)
    mlp = model.model.layers[1].mlp
    mlp.up_proj = layer(mlp.up_proj.weight.detach())
    matrices = quantized_layers.quantized_matrices(model, None, "unquantized")
    assert [m.name for m in matrices] == ["model.layers.1.mlp.up_proj"]
    assert check_method_is_real(baseline_cell.record, matrices, model)["status"] == "fail"


@pytest.mark.parametrize("claimed", ["bitsandbytes_4bit", "bitsandbytes_int8", "awq", "pretrained"])
def test_method_is_real_fails_on_an_unquantized_model(baseline_cell, claimed):
    matrices = quantized_layers.quantized_matrices(baseline_cell.model, baseline_cell.checkpoint, claimed)
    check = check_method_is_real(baseline_cell.record | {"quantizer": claimed}, matrices, baseline_cell.model)
    assert (check["status"], check["value"]) == ("fail", 0.0)


@pytest.mark.parametrize(("cell", "claimed"), [("nf4_cell", "awq"), ("int8_cell", "bitsandbytes_4bit")])
def test_method_is_real_fails_on_another_method_than_claimed(request, cell, claimed):
    """As in a published report whose AWQ column was NF4."""
    cell = request.getfixturevalue(cell)
    matrices = quantized_layers.quantized_matrices(cell.model, cell.checkpoint, claimed)
    assert check_method_is_real({"quantizer": claimed}, matrices, cell.model)["status"] == "fail"


def test_method_is_real_fails_when_the_head_was_quantized(make_cell, reference_source, nf4_cell, damaged_copy):
    import bitsandbytes

    model, matrices = damaged_copy(nf4_cell)
    head = bitsandbytes.nn.Linear4bit(256, 8192, bias=False, quant_type="nf4")
    head.weight = bitsandbytes.nn.Params4bit(model.lm_head.weight.float(), requires_grad=False, quant_type="nf4")
    model.lm_head = head.to("cpu")
    matrices = quantized_layers.quantized_matrices(model, nf4_cell.checkpoint, "bitsandbytes_4bit")
    assert len(matrices) == 57
    check = check_method_is_real(nf4_cell.record, matrices, model)
    assert check["status"] == "fail"
    assert "head is quantized" in check["explanation"]


def test_method_is_real_fails_when_half_of_the_layers_were_kept(nf4_cell, damaged_copy):
    model, matrices = damaged_copy(nf4_cell)
    for matrix in matrices[:28]:
        parent, _, name = matrix.name.rpartition(".")
        setattr(model.get_submodule(parent), name, torch.nn.Linear(matrix.columns, matrix.rows, bias=False))
    left = quantized_layers.quantized_matrices(model, nf4_cell.checkpoint, "bitsandbytes_4bit")
    check = check_method_is_real(nf4_cell.record, left, model)
    assert check["status"] == "fail"
    assert check["value"] == pytest.approx(0.5)


@pytest.mark.parametrize("cell", CELLS)
def test_bits_per_weight_passes(cell, request):
    assert check_bits_per_weight(request.getfixturevalue(cell).record)["status"] == "pass"


@pytest.mark.parametrize("factor", [1.04, 0.96, 0.5, 2.0])
def test_bits_per_weight_fails_when_off_by_4_percent(nf4_cell, factor):
    record = nf4_cell.record | {"bits_per_weight": nf4_cell.record["bits_per_weight_formula"] * factor}
    check = check_bits_per_weight(record)
    assert check["status"] == "fail"
    assert check["value"] == pytest.approx(abs(factor - 1))


def test_bits_per_weight_is_skipped_without_quantized_matrices(baseline_cell):
    assert check_bits_per_weight(baseline_cell.record)["status"] == "skipped"


def test_bits_per_weight_sees_scales_that_are_wider_than_the_format(nf4_cell, damaged_copy):
    """Blocks of 32 weights where 64 are claimed: measured on the modules, not read from a config."""
    model, _ = damaged_copy(nf4_cell)
    for name, module in model.named_modules():
        if type(module).__name__ == "Linear4bit":
            state = module.weight.quant_state
            state.absmax = torch.cat([state.absmax, state.absmax, state.absmax])
            assert quantized_layers.stored_tensors(nf4_cell.checkpoint, name)
    matrices = quantized_layers.quantized_matrices(model, nf4_cell.checkpoint, "bitsandbytes_4bit")
    measured, formula = quantized_layers.bits_per_weight(matrices)
    check = check_bits_per_weight({"bits_per_weight": measured, "bits_per_weight_formula": formula})
    assert check["status"] == "fail"


def test_the_limit_is_the_documented_one():
    assert weights.BITS_LIMIT == 0.03
