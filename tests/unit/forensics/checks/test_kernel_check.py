"""The check `kernel` passes on a good cell and fails where a layer multiplies by other weights than its file's."""

import math

import pytest
import torch

from quantharm.forensics.checks.kernel import KERNEL_LIMIT, check_kernel, choose_matrices
from quantharm.quantizers.formats.activations import llm_int8

CELLS = ["nf4_cell", "int8_cell", "awq_cell"]
TOKENS = [0, *range(20, 240, 9)]


@pytest.mark.parametrize("cell", CELLS)
def test_kernel_passes(cell, request):
    cell = request.getfixturevalue(cell)
    check = check_kernel(cell.model, cell.matrices, TOKENS)
    assert check["status"] == "pass", check
    assert 0 <= check["value"] <= 0.02  # 0 where the products are float32's


def test_kernel_is_skipped_without_quantized_matrices(baseline_cell):
    assert check_kernel(baseline_cell.model, [], TOKENS)["status"] == "skipped"


def swap_rows_of_codes(module):
    codes = module.weight.data
    if codes.dtype == torch.uint8:  # 4 bits: half a row of bytes each
        half = module.in_features // 2
        rows = codes.view(-1, half)
        rows[[3, 100]] = rows[[100, 3]]
        rows[[7, 120]] = rows[[120, 7]]
    else:
        codes[[3, 100, 7, 120]] = codes[[100, 3, 120, 7]]


def scale_an_output(module):
    module.register_forward_hook(lambda _, __, output: output * 1.03)


def shift_an_output(module):
    def rolled(_, __, output):
        return output.roll(1, dims=-1)

    module.register_forward_hook(rolled)


def make_an_output_nan(module):
    module.register_forward_hook(lambda _, __, output: output * math.nan)


@pytest.mark.parametrize("cell", ["nf4_cell", "int8_cell"])
@pytest.mark.parametrize("fault", [swap_rows_of_codes, scale_an_output, shift_an_output, make_an_output_nan])
def test_kernel_fails_on_a_faulty_layer(cell, fault, request, damaged_copy):
    model, matrices = damaged_copy(request.getfixturevalue(cell))
    victim = choose_matrices(matrices)[3]
    fault(model.get_submodule(victim.name))
    check = check_kernel(model, matrices, TOKENS)
    assert check["status"] == "fail", check
    assert victim.name in check["explanation"] or fault is make_an_output_nan


@pytest.mark.parametrize("fault", [scale_an_output, shift_an_output])
def test_kernel_fails_on_a_faulty_awq_layer(awq_cell, fault, damaged_copy):
    model, matrices = damaged_copy(awq_cell)
    fault(model.get_submodule(choose_matrices(matrices)[3].name))
    assert check_kernel(model, matrices, TOKENS)["status"] == "fail"


def test_kernel_looks_at_every_kind_of_matrix_and_at_several_layers(nf4_cell):
    chosen = [m.name for m in choose_matrices(nf4_cell.matrices)]
    assert len(chosen) == len({name.rsplit(".", 1)[-1] for name in chosen}) == 7
    assert len({name.split(".")[2] for name in chosen}) >= 5


def test_llm_int8_by_hand():
    weight = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]])
    inputs = torch.tensor([[1.27, 0.504, 9.0]])
    # column 2 is an outlier and exact; the others are rounded to steps of 0.01: 0.504 → 0.50
    expected = torch.tensor([[1.27 + 18.0, 0.50]])
    torch.testing.assert_close(llm_int8(inputs, 6.0) @ weight.t(), expected)
    # without a threshold the step is 9 / 127 = 0.0709: 1.27 → 18 steps, 0.504 → 7 steps
    expected = torch.tensor([[18 * 9 / 127 + 18.0, 7 * 9 / 127]])
    torch.testing.assert_close(llm_int8(inputs, 0.0) @ weight.t(), expected)


def test_the_limit_is_the_documented_one():
    assert KERNEL_LIMIT == 0.02
