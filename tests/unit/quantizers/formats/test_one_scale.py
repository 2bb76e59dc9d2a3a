"""One scale of a bitsandbytes or AWQ checkpoint that is wrong in the file: multiplied, lost or no number."""

import math

import pytest
import torch
from safetensors.torch import save_file

from quantharm.models.source import describe

MATRIX = "model.layers.1.mlp.down_proj"
BY_BITSANDBYTES = {
    "int8": ("bitsandbytes_int8", {"threshold": 6.0}),
    "nf4": ("bitsandbytes_4bit", {"quant_type": "nf4", "double_quantization": False}),
    "fp4": ("bitsandbytes_4bit", {"quant_type": "fp4", "double_quantization": False}),
    "nf4-nested": ("bitsandbytes_4bit", {"quant_type": "nf4", "double_quantization": True}),
}
CHANGES = {"times 8": 8.0, "doubled": 2.0, "halved": 0.5, "zero": 0.0, "negative": -1.0, "NaN": math.nan}


@pytest.fixture(scope="module")
def bitsandbytes_cells(make_cell, original):
    source = describe("tiny", str(original), original, None, False, False)
    return {kind: make_cell(source, *made) for kind, made in BY_BITSANDBYTES.items()}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["int8", "nf4", "fp4"])
def test_a_wrong_scale_of_bitsandbytes_is_noticed(kind, change, bitsandbytes_cells, with_wrong_scale):
    scales = "SCB" if kind == "int8" else "weight.absmax"
    check = with_wrong_scale(bitsandbytes_cells[kind], f"{MATRIX}.{scales}", 9, lambda number: CHANGES[change] * number)
    assert check["status"] == "fail", check
    assert MATRIX in check["explanation"]


@pytest.mark.parametrize("code", [0, 255])
def test_a_nested_scale_is_a_code_and_a_wrong_one_is_noticed(code, bitsandbytes_cells, with_wrong_scale):
    """The least and the largest of the 256 levels that a second scale multiplies."""
    check = with_wrong_scale(
        bitsandbytes_cells["nf4-nested"], f"{MATRIX}.weight.absmax", 9, lambda _: torch.tensor(float(code))
    )
    assert check["status"] == "fail", check


@pytest.fixture(scope="module")
def rounded_to_awq(awq_checkpoint, tmp_path_factory):
    """Weights whose nearest levels are those of the AWQ checkpoint: half a step beside them at most."""
    folder, random = tmp_path_factory.mktemp("before_awq"), torch.Generator().manual_seed(1)
    weights = {}
    for name, matrix in awq_checkpoint[2].items():
        groups = matrix.unflatten(1, (-1, 64))
        step = groups.abs().amax(-1, keepdim=True) / 15
        beside = (torch.rand(groups.shape, generator=random) - 0.5) * step
        weights[f"{name}.weight"] = (groups + beside).flatten(1)
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("change", CHANGES)
def test_a_wrong_scale_of_awq_is_noticed(change, awq_cell, rounded_to_awq, with_wrong_scale):
    check = with_wrong_scale(
        awq_cell, f"{MATRIX}.scales", (1, 5), lambda number: CHANGES[change] * number, rounded_to_awq
    )
    assert check["status"] == "fail", check
    assert f"row 5 of {MATRIX}" in check["explanation"]
