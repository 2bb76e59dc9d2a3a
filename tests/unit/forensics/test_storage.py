"""Each matrix of a checkpoint is judged by how it is stored itself: nothing beside it ends the scan."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from quantharm.forensics.detection import checkpoints, storage
from quantharm.forensics.detection.storage import Stored, packed_matrices, read_storage

# One matrix of each way to pack, as its library writes it: (tensors of the module, which of them is the matrix).
PACKED = {
    "bitsandbytes int8": ({"weight": ("I8", 64, 64), "SCB": ("F32", 64), "weight_format": ("U8",)}, "weight"),
    "bitsandbytes nf4": (
        {
            "weight": ("U8", 2048, 1),
            "weight.absmax": ("U8", 64),
            "weight.nested_absmax": ("F32", 1),
            "weight.nested_quant_map": ("F32", 256),
            "weight.quant_map": ("F32", 16),
            "weight.quant_state.bitsandbytes__nf4": ("U8", 90),
        },
        "weight",
    ),
    "AWQ": ({"qweight": ("I32", 64, 8), "qzeros": ("I32", 1, 8), "scales": ("F16", 1, 64)}, "qweight"),
    "GPTQ": (
        {"qweight": ("I32", 8, 64), "qzeros": ("I32", 1, 8), "scales": ("F16", 1, 64), "g_idx": ("I32", 64)},
        "qweight",
    ),
    "compressed-tensors": (
        {"weight_packed": ("I32", 64, 8), "weight_scale": ("BF16", 64, 1), "weight_shape": ("I64", 2)},
        "weight_packed",
    ),
    "FP8 in blocks": ({"weight": ("F8_E4M3", 64, 64), "weight_scale_inv": ("F32", 1, 1)}, "weight"),
    "MXFP4": ({"up_proj_blocks": ("U8", 4, 64, 2, 16), "up_proj_scales": ("U8", 4, 64, 2)}, "up_proj_blocks"),
    "quanto": ({"weight._data": ("I8", 64, 64), "weight._scale": ("BF16", 64, 1)}, "weight._data"),
    "torchao": ({"_weight_qdata": ("I8", 64, 64), "_weight_scale": ("F32", 64, 1)}, "_weight_qdata"),
}  # fmt: skip


def tensors_of(module: str, parts: dict) -> list[Stored]:
    return [Stored(f"{module}.{name}", dtype, shape) for name, (dtype, *shape) in parts.items()]


@pytest.mark.parametrize("kind", PACKED)
def test_a_packed_matrix_is_one_matrix_and_its_scales_are_none(kind):
    parts, matrix = PACKED[kind]
    tensors = tensors_of("model.layers.0.mlp.up_proj", parts)
    assert [t.name for t in packed_matrices(tensors)] == [f"model.layers.0.mlp.up_proj.{matrix}"]
    assert not [t for t in tensors if storage.is_float_matrix(t) and not storage.BESIDE.search(t.own_name)]


def test_lists_of_integers_beside_scales_are_no_matrices():
    module = "model.layers.0.mlp.up_proj"
    tensors = tensors_of(module, {"weight": ("I8", 64, 64), "weight_scale": ("F32", 64), "order": ("I32", 64)})
    assert [t.name for t in packed_matrices(tensors)] == [f"{module}.weight"]


def test_masks_and_position_ids_are_not_packed():
    tensors = [
        Stored("gpt_neox.layers.0.attention.bias", "U8", (1, 1, 2048, 2048)),
        Stored("gpt_neox.layers.0.attention.masked_bias", "F16", ()),
        Stored("gpt_neox.layers.0.attention.query_key_value.scales", "F16", (1, 64)),  # another module's
        Stored("embeddings.position_ids", "I64", (1, 512)),
        Stored("mask", "U8", (64, 64)),
    ]
    assert packed_matrices(tensors) == []


@pytest.fixture(scope="module")
def honest(tiny, save_checkpoint, tmp_path_factory):
    """A folder with a model never quantized, wide enough to be judged."""
    folder = tmp_path_factory.mktemp("honest") / "tiny"
    model = tiny("llama", torch.bfloat16, hidden_size=128, intermediate_size=256, max_position_embeddings=256)
    save_checkpoint(model, folder)
    return folder


@pytest.fixture
def copied(honest, tmp_path):
    return shutil.copytree(honest, tmp_path / "copied")


def edit(folder, change, config=None):
    """change: of {name: tensor}; config: keys to set."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({n: t.contiguous() for n, t in tensors.items()}, path, metadata={"format": "pt"})
    if config is not None:
        known = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(known | config))


def four_bits(tensors):
    """Rounded to 4-bit integers by row and written out as floats."""
    for name in tensors:
        if "proj" in name:
            weight = tensors[name].float()
            scale = weight.abs().amax(1, keepdim=True) / 7
            tensors[name] = ((weight / scale).round() * scale).to(tensors[name].dtype)


def one_integer_tensor(tensors):
    tensors["model.extra"] = torch.zeros(64, 64, dtype=torch.uint8)


def one_packed_matrix(tensors):
    """A matrix that nobody loads, with scales beside it."""
    tensors["model.extra.weight"] = torch.zeros(64, 64, dtype=torch.uint8)
    tensors["model.extra.weight_scale"] = torch.ones(64)


@pytest.mark.parametrize("added", [None, one_integer_tensor, one_packed_matrix])
@pytest.mark.parametrize("config", [None, {"quantization_config": {"quant_method": "awq"}}])
def test_nothing_beside_dequantized_matrices_ends_the_scan(copied, added, config):
    def change(tensors):
        four_bits(tensors)
        if added:
            added(tensors)

    edit(copied, change, config)
    scan = checkpoints.scan_folder(copied)
    assert (scan["verdict"], scan["method"], scan["matrices_with_trace"]) == ("dequantized", "4-bit integer", 14)
    assert bool(scan["findings"]) == (config is not None)


def test_matrices_that_the_architecture_lacks_do_not_hide_the_others(copied):
    def change(tensors):
        four_bits(tensors)
        generator = torch.Generator().manual_seed(0)
        tensors |= {f"model.layers.{i}.other.weight": torch.randn(32, 64, generator=generator) for i in range(2, 1000)}

    edit(copied, change)
    scan = checkpoints.scan_folder(copied)
    assert scan["foreign_matrices"] == 998
    assert (scan["verdict"], scan["matrices_scanned"]) == ("dequantized", 16)


def test_integer_masks_do_not_make_an_honest_model_quantized(tmp_path):
    folder = tmp_path / "neox"
    small = transformers.GPTNeoXConfig(
        vocab_size=384,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=False,
    )
    transformers.GPTNeoXForCausalLM(small).to(torch.bfloat16).save_pretrained(folder)

    def masks(tensors):
        for layer in range(2):
            module = f"gpt_neox.layers.{layer}.attention"
            tensors[f"{module}.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.uint8)
            tensors[f"{module}.masked_bias"] = torch.tensor(-1e9)

    edit(folder, masks)
    scan = checkpoints.scan_folder(folder)
    assert (scan["verdict"], scan["findings"], scan["matrices_packed"]) == ("no trace", [], 0)
    assert (scan["matrices_scanned"], scan["foreign_matrices"]) == (10, 0)  # four in each of two layers and two


def test_a_claim_that_the_weights_do_not_keep_is_a_finding(copied):
    edit(copied, lambda tensors: None, {"quantization_config": {"quant_method": "bitsandbytes"}})
    scan = checkpoints.scan_folder(copied)
    assert scan["verdict"] == "no trace"
    assert scan["findings"] == ["config.json claims bitsandbytes, but all 16 matrices are plain floats"]


def test_packed_weights_without_a_claim_are_a_finding(nf4_cell, tmp_path):
    folder = shutil.copytree(nf4_cell.checkpoint, tmp_path / "silent")
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    scan = checkpoints.scan_folder(folder)
    assert scan["verdict"] == "packed"
    assert scan["findings"] == ["56 of 58 matrices are stored packed, but config.json declares no quantization"]


@pytest.mark.parametrize("name", ["nf4_cell", "int8_cell", "awq_cell"])
def test_every_matrix_of_a_quantized_cell_is_counted_as_packed(name, request):
    cell = request.getfixturevalue(name)
    storage_read = read_storage(cell.checkpoint)
    assert {n.rpartition(".")[0] for n in storage_read.packed} == {m.name for m in cell.matrices}
    assert sorted(n.rpartition(".")[0].rpartition(".")[2] for n in storage_read.floats) == ["embed_tokens", "lm_head"]
    assert (storage_read.findings, storage_read.foreign) == ([], [])


def test_mixed_checkpoints_are_reported_by_count(copied):
    def change(tensors):
        names = [n for n in tensors if "down_proj" in n]
        for name in names:
            tensors[name] = tensors[name].mul(1000).to(torch.int8)
            tensors[name.replace(".weight", ".SCB")] = torch.ones(128)

    edit(copied, change, {"quantization_config": {"quant_method": "bitsandbytes"}})
    scan = checkpoints.scan_folder(copied)
    assert (scan["verdict"], scan["matrices_packed"], scan["matrices_scanned"]) == ("partly packed", 2, 14)
    assert scan["explanation"].startswith("2 of 16 matrices are openly stored as quantized (bitsandbytes)")
    assert scan["findings"] == []


def test_experts_are_scanned_as_matrices(tiny, save_checkpoint, tmp_path):
    folder = tmp_path / "experts"
    save_checkpoint(tiny("llama", torch.bfloat16, hidden_size=128, intermediate_size=256), folder)

    def stack(tensors):
        weight = 0.02 * torch.randn(6, 64, 128, generator=torch.Generator().manual_seed(0))
        scale = weight.abs().amax(2, keepdim=True) / 7
        tensors |= {"model.layers.0.mlp.experts.gate_up_proj": ((weight / scale).round() * scale).bfloat16()}

    edit(folder, stack, {"model_type": "unknown to transformers"})
    scan = checkpoints.scan_folder(folder)
    traced = [m["name"] for m in scan["matrices"] if m["verdict"] == "dequantized"]
    assert traced == [f"model.layers.0.mlp.experts.gate_up_proj[{i}]" for i in (0, 1, 3, 4)]
