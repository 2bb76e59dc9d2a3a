"""GPTQ, by gptqmodel itself and packed by hand."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from quantharm.common.errors import UserError
from quantharm.forensics.checks.kernel import check_kernel
from quantharm.forensics.checks.weights import check_bits_per_weight, check_method_is_real, check_stored_weights
from quantharm.quantizers.formats import gptq

IDS = [0, 5, 77, 200, 31, 8, 9, 250, 3]


@pytest.fixture(scope="module")
def theirs(tiny, byte_tokenizer, tmp_path_factory):
    """By gptqmodel: 4 bits in groups of 32 in the order of activations, one kind in 8 bits, one layer left alone."""
    from gptqmodel import GPTQModel, QuantizeConfig

    folder = tmp_path_factory.mktemp("gptq")
    tiny("llama", torch.bfloat16).save_pretrained(folder / "source")
    byte_tokenizer().save_pretrained(folder / "source")
    random = torch.Generator().manual_seed(0)
    samples = [torch.randint(2, 250, (64,), generator=random).tolist() for _ in range(8)]
    dynamic = {r"+:.*mlp\.down_proj": {"bits": 8, "group_size": 64}, r"-:.*layers\.1\..*v_proj": {}}
    config = QuantizeConfig(bits=4, group_size=32, desc_act=True, sym=False, dynamic=dynamic)
    with torch.enable_grad():
        model = GPTQModel.load(str(folder / "source"), config, device="cpu")
        model.quantize([{"input_ids": ids, "attention_mask": [1] * 64} for ids in samples], batch_size=1)
    model.save(str(folder / "quantized"))
    torch.set_grad_enabled(False)
    return folder / "quantized"


@pytest.fixture(scope="module")
def cell(theirs, foreign):
    return foreign(theirs)


def test_it_is_read_whatever_bits_each_matrix_has(cell, passes):
    assert len(cell.matrices) == 13
    assert passes(cell, 5.9107) < 1e-5  # in float32: our arithmetic twice
    assert cell.record["linear_classes"] == ["TorchLinear"]
    kept = check_method_is_real(cell.record, cell.matrices, cell.model)["explanation"]
    assert "its config excludes 1 others" in kept


def test_it_dequantizes_as_gptqmodel_does(theirs, foreign):
    model = foreign(theirs, "bfloat16")
    for matrix in model.matrices:
        layer = model.model.get_submodule(matrix.name)
        expected = layer.dequantize_weight().float().t()
        torch.testing.assert_close(matrix.dequantize(), expected, rtol=2**-7, atol=1e-6)
    assert check_kernel(model.model, model.matrices, [0, 5, 77, 200])["status"] == "pass"


def test_groups_are_in_the_order_that_the_file_states(cell, theirs):
    tensors = load_file(theirs / "model.safetensors")
    order = tensors["model.layers.0.self_attn.q_proj.g_idx"]
    assert order.diff().min() < 0  # not neighbours
    matrix = next(m for m in cell.matrices if m.name.endswith("layers.0.self_attn.q_proj"))
    steps = matrix.dequantize().sort(1).values
    by_group = torch.stack([steps[0, (order == g).nonzero()[:, 0]] for g in range(2)])
    assert by_group.shape == (2, 32)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("first", [True, False])
def test_packed_by_hand(bits, first):
    """Codes and zero points laid into a long integer, word by word; the first version stores zero points less 1."""
    random = torch.Generator().manual_seed(bits)
    rows, columns, group = 32, 64, 32
    codes = torch.randint(0, 2**bits, (columns, rows), generator=random)
    zeros = torch.randint(1, 2**bits, (columns // group, rows), generator=random)
    scales = torch.rand(columns // group, rows, generator=random).half()

    def packed(lines):  # [n, numbers] → [n, words]
        words = []
        for line in lines.tolist():
            long = sum(number << (bits * i) for i, number in enumerate(line))
            unsigned = [(long >> (32 * i)) & 0xFFFFFFFF for i in range(len(line) * bits // 32)]
            words.append([word - 2**32 if word >= 2**31 else word for word in unsigned])
        return torch.tensor(words, dtype=torch.int32)

    tensors = {
        "qweight": packed(codes.t()).t().contiguous(),
        "qzeros": packed(zeros - 1 if first else zeros),
        "scales": scales,
    }
    by_hand = torch.stack(
        [(codes[c] - zeros[c // group]).float() * scales[c // group].float() for c in range(columns)], dim=1
    )
    torch.testing.assert_close(gptq.dequantize(tensors, bits, first), by_hand)
    order = torch.randperm(columns, generator=random) // group
    by_order = torch.stack(
        [(codes[c] - zeros[order[c]]).float() * scales[order[c]].float() for c in range(columns)], dim=1
    )
    torch.testing.assert_close(gptq.dequantize(tensors | {"g_idx": order.int()}, bits, first), by_order)


def test_the_transposed_matrices_of_gpt2(tiny, foreign, save_checkpoint, logits_of, tmp_path):
    """Rounded and packed by hand: transformers' Conv1D keeps [inputs, outputs], as GPTQ's files do."""
    model = tiny("gpt2", tie_word_embeddings=False)
    source = save_checkpoint(model, tmp_path / "original")
    save_checkpoint(model, tmp_path / "packed")
    shifts, tensors = 4 * torch.arange(8), load_file(tmp_path / "packed" / "model.safetensors")
    for name, module in model.named_modules():
        if type(module).__name__ != "Conv1D":
            continue
        groups = module.weight.unflatten(0, (-1, 32))  # [groups, 32, outputs]
        scales = (groups.abs().amax(1) / 7).half()
        codes = (groups / scales.float().unsqueeze(1)).round().clamp(-8, 7).flatten(0, 1)
        module.weight.copy_(codes * scales.float().repeat_interleave(32, 0))
        words = ((codes.long() + 8).unflatten(0, (-1, 8)) << shifts.view(1, 8, 1)).sum(1)
        del tensors[f"{name}.weight"]
        tensors |= {
            f"{name}.qweight": (words - (words >> 31 << 32)).int(),
            f"{name}.qzeros": torch.full((len(scales), scales.shape[1] // 8), 0x77777777, dtype=torch.int32),
            f"{name}.scales": scales,
            f"{name}.g_idx": (torch.arange(len(codes)) // 32).int(),
        }
    save_file(tensors, tmp_path / "packed" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False}
    (tmp_path / "packed" / "config.json").write_text(json.dumps(config))
    cell = foreign(tmp_path / "packed", "float32", source)
    assert len(cell.matrices) == 8
    torch.testing.assert_close(logits_of(cell), model(torch.tensor([IDS])).logits[0], rtol=1e-4, atol=1e-4)
    stored = check_stored_weights(cell.model, cell.matrices, tmp_path / "original", cell.record)
    assert stored["status"] == "pass", stored


def test_a_changed_scale_fails_the_kernel_check(theirs, foreign):
    broken = foreign(theirs, "bfloat16")
    broken.model.get_submodule("model.layers.1.mlp.down_proj").scales[0, :8] *= 3
    assert check_kernel(broken.model, broken.matrices, [0, 5, 77, 200])["status"] == "fail"


def test_a_matrix_without_scales_is_named(theirs, foreign, tmp_path):
    tensors = load_file(theirs / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.scales"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (tmp_path / name).write_bytes((theirs / name).read_bytes())
    with pytest.raises(UserError, match=r"is damaged: model\.layers\.1\.mlp\.up_proj has no scales"):
        foreign(tmp_path, "bfloat16")


@pytest.mark.parametrize("module", ["layers.0.mlp.up_proj", "layers.1.mlp.down_proj"])  # 4 bits in 32, 8 in 64
def test_one_wrong_scale_in_the_file_is_noticed(cell, with_wrong_scale, module):
    check = with_wrong_scale(cell, f"model.{module}.scales", (1, 5))
    assert check["status"] == "fail"
    assert f"row 5 of model.{module}" in check["explanation"]


def test_the_first_version_read_as_the_second_is_noticed(theirs, foreign, original, tmp_path):
    """All zero points are one too small then: the kernel computes faithfully what the file does not mean."""
    for name in ("tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((theirs / name).read_bytes())
    config = json.loads((theirs / "config.json").read_text())
    config["quantization_config"] |= {"checkpoint_format": "gptq_v2", "format": "gptq_v2"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    cell = foreign(tmp_path, "bfloat16")
    assert check_kernel(cell.model, cell.matrices, IDS)["status"] == "pass"
    check = check_stored_weights(cell.model, cell.matrices, original, cell.record)
    assert check["status"] == "fail", check
    assert "is shifted up, as by other zero points" in check["explanation"]


def test_one_damaged_number_of_a_norm_is_noticed(theirs, foreign, original):
    damaged = foreign(theirs)
    damaged.model.model.layers[0].input_layernorm.weight[7] *= -1
    check = check_stored_weights(damaged.model, damaged.matrices, original, damaged.record)
    assert check["status"] == "fail"
    assert "model.layers.0.input_layernorm.weight has 1 numbers that are not the original's" in check["explanation"]


def test_autorounds_own_packing_is_the_same_layout(theirs, foreign, logits_of, cell, tmp_path):
    """As auto-round writes it: its own quant_method and the first version's zero points."""
    save_file(load_file(theirs / "model.safetensors"), tmp_path / "model.safetensors", metadata={"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((theirs / name).read_bytes())
    config = json.loads((theirs / "config.json").read_text())
    own = {"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", "bits": 4, "group_size": 32}
    own |= {"sym": False, "extra_config": {"model.layers.1.self_attn.v_proj": {"bits": 16}}}
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": own}))
    read = foreign(tmp_path)
    assert torch.equal(logits_of(read), logits_of(cell))
    assert check_method_is_real(read.record, read.matrices, read.model)["status"] == "pass"


def test_autoround_excludes_by_names_and_patterns():
    bits = {"a.up": 16, r".*layers\.1\.mlp.*": 16, ".*down": 8, "a": 16}
    stated = {"extra_config": {key: {"bits": value} for key, value in bits.items()}}
    names = ["a.up", "a.up_too", "model.layers.1.mlp.gate", "model.layers.11.mlp.gate", "b.down"]
    assert gptq.excluded(stated, names) == {"a.up", "model.layers.1.mlp.gate"}


def test_without_an_order_groups_are_neighbours(theirs, foreign, logits_of, tmp_path):
    """AutoRound writes no g_idx; a layer's own, unfilled, would be whatever lies in memory."""
    tensors = {k: t for k, t in load_file(theirs / "model.safetensors").items() if not k.endswith("g_idx")}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (tmp_path / name).write_bytes((theirs / name).read_bytes())
    read = foreign(tmp_path, "bfloat16")
    assert check_kernel(read.model, read.matrices, [0, 5, 77, 200])["status"] == "pass"
    assert check_bits_per_weight(read.record)["status"] == "pass"
    layer = read.model.get_submodule("model.layers.0.self_attn.q_proj")
    assert layer.g_idx.tolist() == [0] * 32 + [1] * 32


class BaseQuantLinear(SimpleNamespace):
    """A layer as the format's module sees it: it is known by its class's name."""


@pytest.mark.parametrize("bias", [None, torch.linspace(-3, 3, 32, dtype=torch.float16)], ids=["without", "with"])
def test_a_layer_in_float32_is_its_codes_and_scales_and_bias(bias):
    """Whichever kernel it came with: some multiply in 16 bits on a CPU."""
    random = torch.Generator().manual_seed(0)
    inputs, outputs, groups = 64, 32, 2
    layer = BaseQuantLinear(
        qweight=torch.randint(-(2**31), 2**31, (inputs // 8, outputs), generator=random).int(),
        qzeros=torch.randint(-(2**31), 2**31, (groups, outputs // 8), generator=random).int(),
        scales=torch.rand(groups, outputs, generator=random).half(),
        g_idx=(torch.randperm(inputs, generator=random) % groups).int(),
        bits=4,
        bias=bias,
    )
    gptq.multiply_in_float32(layer)
    tensors = {name: getattr(layer, name) for name in ("qweight", "qzeros", "scales", "g_idx")}
    weight = gptq.dequantize(tensors, 4, False).double()
    x = torch.randn(5, inputs, generator=random)
    expected = x.double() @ weight.t() + (0 if bias is None else bias.double())
    assert layer.forward(x).double() == pytest.approx(expected, rel=1e-5, abs=1e-4)


def test_a_layer_without_codes_stays_as_it_is():
    layer = BaseQuantLinear(bits=4)  # gptqmodel's for 8-bit integers
    gptq.multiply_in_float32(layer)
    assert not hasattr(layer, "forward")
