"""The check `kernel` on every AWQ kernel, at the width of a 7B model, and that it catches a wrong one."""

import os
from pathlib import Path

import pytest
import torch

from quantharm.common.text import read_text
from quantharm.forensics.checks.kernel import KERNEL_LIMIT, check_kernel
from quantharm.models.loading import load_tokenizer
from quantharm.quantizers import against_original, quantized_layers
from quantharm.quantizers.formats import awq, torchao_matrices

COMPILED = pytest.mark.skipif(
    not os.environ.get("QUANTHARM_COMPILED_KERNELS"),
    reason="compiled at first use, for two minutes: set QUANTHARM_COMPILED_KERNELS=1 to test it",
)
BACKENDS = ["gemm_triton", "torch_awq", "exllama_v2"]  # the last one is compiled for half a minute
BACKENDS += [pytest.param(name, marks=COMPILED) for name in ("gemm", "marlin")]


def kernel_check(model, record) -> dict:
    tokens = load_tokenizer(record["source"])(read_text("data/evaluation.txt")[:4000])["input_ids"][:64]
    matrices = quantized_layers.quantized_matrices(model, Path(record["checkpoint"]), record["quantizer"])
    return check_kernel(model, matrices, tokens)


@pytest.mark.parametrize("method", ["int8", "nf4", "awq"])
def test_kernels_compute_what_the_file_says(load, wide_cell, method):
    check = kernel_check(load(method), wide_cell(method))
    assert check["status"] == "pass", check


@pytest.mark.parametrize("backend", BACKENDS)
def test_awq_kernels_compute_what_the_file_says(load, wide_cell, backend):
    check = kernel_check(load("awq", backend=backend), wide_cell("awq"))
    assert check["status"] == "pass", check


def test_a_kernel_that_is_a_little_off_is_caught(load, wide_cell):
    model = load("awq")
    for layer in model.model.layers:
        layer.mlp.down_proj.register_forward_hook(lambda _, __, output: output * (1 + 1.5 * KERNEL_LIMIT))
    check = kernel_check(model, wide_cell("awq"))
    assert (check["status"], "down_proj" in check["explanation"]) == ("fail", True)


@pytest.mark.parametrize("method", ["int8", "nf4", "awq"])
def test_stored_weights_are_compared_on_the_gpu(load, wide_cell, wide_source, method, monkeypatch):
    """As on a CPU; there where a GPU has no memory left."""
    record, devices, full, worst_of = wide_cell(method), [], [], against_original.worst_of
    matrices = quantized_layers.quantized_matrices(load(method), Path(record["checkpoint"]), record["quantizer"])[:4]

    def watched(dequantized, *rest):
        devices.append(dequantized.device.type)
        if full and dequantized.is_cuda:
            raise torch.OutOfMemoryError
        return worst_of(dequantized, *rest)

    monkeypatch.setattr(against_original, "worst_of", watched)
    judged = [against_original.judge(load(method), matrices, Path(wide_source["path"]), False)]
    full.append(True)
    judged.append(against_original.judge(load(method), matrices, Path(wide_source["path"]), False))
    assert devices == ["cuda"] * 4 + ["cuda", "cpu"] * 4
    assert judged[0][0] is judged[1][0] is True
    assert judged[0][1] == pytest.approx(judged[1][1], rel=1e-4)


def test_int4_for_tensor_cores_is_unpacked_as_it_was_packed():
    """torchao's layout, by the library's own function, which exists on a GPU only."""
    codes = torch.randint(0, 16, (64, 2048), generator=torch.Generator().manual_seed(0))
    packed = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8).cuda()
    words = torch.ops.aten._convert_weight_to_int4pack(packed, 8).cpu()
    assert torch.equal(torchao_matrices.tiled_codes(words), codes)


def test_the_default_kernel_needs_no_compiler(load):
    assert awq.DEFAULT_BACKEND["cuda"] == "gemm_triton"
    assert "Triton" in type(load("awq").model.layers[0].mlp.down_proj).__name__


def test_cells_of_a_model_compute_in_one_dtype(load):
    for method in ("baseline", "int8", "nf4", "awq"):
        assert load(method).dtype == torch.bfloat16
