"""Block-FP8 as DeepSeek and Qwen ship it; no library writes it on a CPU, so it is packed by hand."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from quantharm.common.errors import UserError
from quantharm.forensics.checks.kernel import check_kernel
from quantharm.forensics.checks.logits import mean_kl
from quantharm.quantizers.formats import families, fp8

BLOCK = 32


@pytest.fixture(scope="module")
def theirs(tiny, save_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fp8")
    model = tiny("llama", torch.bfloat16)
    save_checkpoint(model, folder)
    tensors, known = {}, {}
    for name, weight in model.state_dict().items():
        if weight.ndim != 2 or "layers" not in name:
            tensors[name] = weight.contiguous()
            continue
        rows, columns = weight.shape
        packed, scales = torch.empty(rows, columns, dtype=torch.float8_e4m3fn), []
        values = torch.empty(rows, columns)
        for top in range(0, rows, BLOCK):  # by hand, one block at a time
            for left in range(0, columns, BLOCK):
                part = slice(top, top + BLOCK), slice(left, left + BLOCK)
                scales.append(float(weight[part].abs().max()) / 448)
                packed[part] = (weight[part].float() / scales[-1]).to(torch.float8_e4m3fn)
                values[part] = packed[part].float() * scales[-1]
        tensors[name], known[name.removesuffix(".weight")] = packed, values
        tensors[f"{name}_scale_inv"] = torch.tensor(scales).reshape(rows // BLOCK, columns // BLOCK)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    own = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": own}))
    return folder, known


def test_it_is_read_as_transformers_reads_it(theirs, foreign, bare_logits, passes, logits_of):
    folder, known = theirs
    cell = foreign(folder, "bfloat16")
    assert passes(cell, 8 + 32 / BLOCK**2) < 0.005
    for matrix in cell.matrices:
        torch.testing.assert_close(matrix.dequantize(), known[matrix.name], rtol=1e-6, atol=0)
    if cell.model.dtype == torch.bfloat16:
        assert mean_kl(bare_logits(folder, "bfloat16"), logits_of(cell)) < 1e-9


def test_in_float32(theirs, foreign, passes):
    cell = foreign(theirs[0])
    assert passes(cell, 8 + 32 / BLOCK**2) < 1e-5
    cell.model.get_submodule("model.layers.1.mlp.down_proj").weight[:BLOCK, :BLOCK] *= 2
    assert check_kernel(cell.model, cell.matrices, [0, 5, 77, 200])["status"] == "fail"


def test_one_wrong_scale_in_the_file_is_noticed(theirs, foreign, with_wrong_scale):
    check = with_wrong_scale(foreign(theirs[0]), "model.layers.1.mlp.down_proj.weight_scale_inv", (1, 0))
    assert check["status"] == "fail"


def test_blocks_are_cut_at_the_ends_and_scales_may_be_powers_of_two():
    weight = torch.ones(3, 5).to(torch.float8_e4m3fn)
    tensors = {"weight": weight, "weight_scale_inv": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
    assert fp8.dequantize(tensors, 2, 4).tolist() == [[1, 1, 1, 1, 2]] * 2 + [[3, 3, 3, 3, 4]]
    tensors["weight_scale_inv"] = torch.tensor([[127, 128], [126, 130]], dtype=torch.uint8)
    assert fp8.dequantize(tensors, 2, 4)[:, 4].tolist() == [2, 2, 8]
    tensors["weight_scale_inv"] = torch.tensor(0.5)
    assert fp8.dequantize(tensors, 3, 5).unique().tolist() == [0.5]


@pytest.mark.parametrize("method", ["hqq", "quanto", "eetq", None])
def test_formats_that_are_not_read_are_refused_by_name(theirs, tmp_path, method):
    config = json.loads((theirs[0] / "config.json").read_text())
    config["quantization_config"]["quant_method"] = method
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="supported are auto-round, auto_round, awq, bitsandbytes") as caught:
        families.refuse_unreadable(tmp_path, "cpu")
    assert (method or "without a quant_method") in str(caught.value)


def test_formats_that_need_a_gpu_say_so_when_they_are_fetched(theirs, tmp_path):
    config = json.loads((theirs[0] / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemv"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    families.refuse_unreadable(tmp_path, "cuda")
    with pytest.raises(UserError, match="kernels for GPUs only"):
        families.refuse_unreadable(tmp_path, "cpu")


def test_scales_by_the_name_that_autofp8_gives_them_are_refused(theirs, foreign, tmp_path):
    for path in theirs[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    renamed = {name.replace("weight_scale_inv", "weight_scale"): tensor for name, tensor in tensors.items()}
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"as `weight_scale`, as AutoFP8 does"):
        foreign(tmp_path, "bfloat16")
