"""gpt-oss' MXFP4: packed by hand, for transformers makes it on a GPU only; read as transformers unpacks it."""

import json

import pytest
import torch
import transformers
from safetensors.torch import save_file

from quantharm.common.errors import UserError
from quantharm.forensics.checks.logits import mean_kl
from quantharm.forensics.checks.weights import check_stored_weights
from quantharm.quantizers.formats import families
from quantharm.quantizers.formats.packing import FP4_LEVELS

IDS = [0, 5, 77, 200, 31, 8, 9, 250, 3]


def packed(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[experts, rows, columns] → blocks [experts, rows, columns / 32, 16] and exponents, one number at a time."""
    groups = weight.float().unflatten(-1, (-1, 32))
    exponents = (groups.abs().amax(-1) / 6).log2().ceil()
    shares = groups / exponents.exp2().unsqueeze(-1)
    codes = (shares.abs().unsqueeze(-1) - torch.tensor(FP4_LEVELS)).abs().argmin(-1) + 8 * (shares < 0)
    return (codes[..., ::2] | codes[..., 1::2] << 4).to(torch.uint8), (exponents + 127).to(torch.uint8)


@pytest.fixture(scope="module")
def theirs(save_checkpoint, tmp_path_factory):
    """(folder in 16 bits, folder as gpt-oss is published)"""
    torch.manual_seed(0)
    config = transformers.GptOssConfig(
        vocab_size=384, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, head_dim=16,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=128,
        layer_types=["full_attention"] * 2,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    for parameter in model.parameters():
        parameter.mul_(10 if parameter.ndim > 1 else 1)  # so that experts count
    plain, folder = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("mxfp4")
    save_checkpoint(model, plain)
    save_checkpoint(model, folder)
    tensors = {}
    for name, weight in model.state_dict().items():
        if name.endswith(("gate_up_proj", "down_proj")):  # [experts, inputs, outputs]
            tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = packed(weight.transpose(1, 2))
        else:
            tensors[name] = weight.contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    stated = json.loads((folder / "config.json").read_text())
    left = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    stated["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": left}
    (folder / "config.json").write_text(json.dumps(stated))
    return plain, folder


@pytest.fixture(scope="module")
def cell(theirs, foreign):
    return foreign(theirs[1], "bfloat16")


def test_it_is_read_as_transformers_reads_it(theirs, cell, bare_logits, logits_of, passes):
    assert len(cell.matrices) == 2 * 4 * 3
    passes(cell, 4.25)
    assert cell.record["held_dequantized"]
    dtype = str(cell.model.dtype).removeprefix("torch.")  # float32 where the processor has no 16-bit instructions
    bare = bare_logits(theirs[1], dtype, quantization_config=transformers.Mxfp4Config(dequantize=True))
    assert mean_kl(bare.float(), logits_of(cell).float()) < 1e-4  # experts one by one


def test_in_float32(theirs, foreign, bare_logits, logits_of, passes):
    read = foreign(theirs[1])
    assert passes(read, 4.25) < 1e-5
    bare = bare_logits(theirs[1], quantization_config=transformers.Mxfp4Config(dequantize=True))
    assert mean_kl(bare, logits_of(read)) < 1e-9


def test_one_wrong_scale_in_the_file_is_noticed(theirs, cell, tmp_path, foreign):
    from safetensors.torch import load_file

    plain, folder = theirs
    sound = check_stored_weights(cell.model, cell.matrices, plain, cell.record)
    assert sound["status"] == "pass", sound
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.experts.gate_up_proj_scales"][2, 99, 1] += 3  # the fourth row of expert 2's second half
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    wrong = foreign(tmp_path, "bfloat16")
    check = check_stored_weights(wrong.model, wrong.matrices, plain, wrong.record)
    assert check["status"] == "fail"
    assert "row 3 of model.layers.1.mlp.experts.2.up_proj, 32 columns from 32" in check["explanation"]


def test_kernels_have_no_names_here(theirs):
    with (
        pytest.raises(UserError, match="backend: marlin"),
        families.loading(theirs[1], "marlin", "bfloat16", "cpu"),
    ):
        pass
