"""compressed-tensors, by the library itself: each preset from its own scheme, observer and compressor."""

import copy
import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from quantharm.common.errors import UserError
from quantharm.forensics.checks.kernel import check_kernel
from quantharm.forensics.checks.logits import mean_kl
from quantharm.quantizers.formats import activations, compressed_tensors, compressed_tensors_config, packing

# preset → bits a weight of the 64-wide model: codes, bfloat16 scales, 16 bytes of shape, a global scale
BITS = {
    "W4A16": 4.5243, "W4A16_ASYM": 4.6493, "W3A16": 3.5243, "W8A8": 8.2222, "FP8": 8.0030, "FP8_DYNAMIC": 8.2222,
    "FP8_BLOCK": 8.0156, "NVFP4A16": 4.5061, "NVFP4": 4.5061, "MXFP4": 4.2500, "MXFP8": 8.2500,
}  # fmt: skip
ROUNDS = ("W8A8", "FP8", "FP8_DYNAMIC", "FP8_BLOCK", "NVFP4", "MXFP4", "MXFP8")
UNREADABLE_BARE = "W4A16_ASYM"  # transformers makes room for unpacked zero points, and refuses the file's
SMALL_GROUP, SMALL_BLOCK = 32, [32, 32]


def scheme_for(preset: str, targets=("Linear",)):
    from compressed_tensors.quantization import QuantizationScheme
    from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES

    arguments = copy.deepcopy(PRESET_SCHEMES[preset])
    if preset.startswith(("W3", "W4")):
        arguments["weights"].group_size = SMALL_GROUP
    if preset == "FP8_BLOCK":
        arguments["weights"].block_structure = SMALL_BLOCK
        arguments["input_activations"].group_size = SMALL_GROUP
    return QuantizationScheme(targets=list(targets), **arguments)


def observe(module) -> None:
    """The library's scales and zero points of one linear layer, from the extremes that it takes."""
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    weights, inputs = module.quantization_scheme.weights, module.quantization_scheme.input_activations
    whole, weight = None, module.weight
    if weights.strategy == "tensor_group":
        whole = generate_gparam(weight.min(), weight.max())
        module.weight_global_scale.data.copy_(whole)
    if weights.strategy == "block":
        tall, wide = weights.block_structure
        parts = weight.unflatten(1, (-1, wide)).unflatten(0, (-1, tall)).transpose(1, 2).flatten(2)
    else:
        parts = {"tensor": weight.reshape(1, -1), "channel": weight.unsqueeze(1)}.get(weights.strategy)
        parts = weight.unflatten(-1, (-1, weights.group_size)) if parts is None else parts
    scale, zero = calculate_qparams(parts.amin(-1), parts.amax(-1), weights, global_scale=whole)
    module.weight_scale.data = scale.reshape(module.weight_scale.shape).to(module.weight_scale.dtype)
    if hasattr(module, "weight_zero_point"):
        module.weight_zero_point.data = zero.reshape(module.weight_zero_point.shape).to(module.weight_zero_point.dtype)
    if inputs is not None and not inputs.dynamic:
        module.input_scale.data.fill_(4 / 448)
    if hasattr(module, "input_global_scale"):
        module.input_global_scale.data.fill_(448 * 6 / 4)


@pytest.fixture(scope="module")
def theirs(tiny, byte_tokenizer, tmp_path_factory):
    """theirs(name, *schemes): the folder of a model that the library compressed by them."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus, apply_quantization_config

    made = {}

    def make(name: str, *schemes):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            model = tiny("llama", torch.bfloat16)
            groups = {f"group_{i}": scheme for i, scheme in enumerate(schemes or [scheme_for(name)])}
            apply_quantization_config(model, QuantizationConfig(config_groups=groups, ignore=["lm_head"]))
            for module in model.modules():
                if getattr(module, "quantization_scheme", None) is not None:
                    observe(module)
                    module.quantization_status = QuantizationStatus.FROZEN
            compressor = ModelCompressor.from_pretrained_model(model)
            compressor.compress_model(model)
            model.save_pretrained(folder)
            byte_tokenizer().save_pretrained(folder)
            compressor.update_config(folder)
            made[name] = folder
        return made[name]

    return make


@pytest.mark.parametrize("preset", BITS)
def test_each_preset_is_read_as_transformers_reads_it(preset, theirs, foreign, bare_logits, passes, logits_of):
    cell = foreign(theirs(preset), "bfloat16")
    assert len(cell.matrices) == 14
    assert all(m.held_dequantized for m in cell.matrices)
    assert all((m.round_inputs is not None) == (preset in ROUNDS) for m in cell.matrices)
    assert passes(cell, BITS[preset]) < 0.005
    assert cell.record["kept_modules"] == ["lm_head"]
    if preset != UNREADABLE_BARE and cell.model.dtype == torch.bfloat16:
        assert mean_kl(bare_logits(theirs(preset), "bfloat16"), logits_of(cell)) < 1e-6


@pytest.mark.parametrize("preset", ["NVFP4", "MXFP8", "FP8_DYNAMIC"])
def test_in_float32_it_computes_in_float32(preset, theirs, foreign, passes, logits_of):
    """transformers unpacks NVFP4 and MX to bfloat16 whatever the model's dtype is, and cannot multiply that."""
    cell = foreign(theirs(preset))
    assert {p.dtype for m in cell.model.modules() for p in m.parameters(recurse=False)} <= {torch.float32}
    assert passes(cell, BITS[preset]) < 0.005
    assert logits_of(cell).isfinite().all()


def test_without_rounded_inputs_the_reference_would_not_fit(theirs, foreign):
    import dataclasses

    cell = foreign(theirs("MXFP4"), "bfloat16")
    plain = [dataclasses.replace(m, round_inputs=None) for m in cell.matrices]
    assert check_kernel(cell.model, plain, [0, 5, 77, 200])["status"] == "fail"


def test_a_mixture_of_schemes(theirs, foreign, passes):
    """Attention in W8A8, the MLP in W4A16, and one layer that no group targets."""
    attention, mlp = r"re:.*self_attn\.(q|k|v)_proj", r"re:.*mlp.*"
    folder = theirs("mixed", scheme_for("W8A8", [attention]), scheme_for("W4A16", [mlp]))
    cell = foreign(folder, "bfloat16")
    assert len(cell.matrices) == 12  # without o_proj
    rounded = {m.name for m in cell.matrices if m.round_inputs}
    assert len(rounded) == 6
    assert all("self_attn" in name for name in rounded)
    passes(cell, cell.record["bits_per_weight_formula"])


def test_a_changed_scale_fails_the_kernel_check(theirs, foreign):
    cell = foreign(theirs("W4A16"), "bfloat16")
    cell.model.get_submodule("model.layers.0.mlp.up_proj").weight[:8] *= 3
    assert check_kernel(cell.model, cell.matrices, [0, 5, 77, 200])["status"] == "fail"


WRONG = {  # preset: a tensor of a matrix, a place in it, its change where ×8 cannot be stored, or would be none
    "W4A16": ("weight_scale", (3, 1)),
    "W8A8": ("weight_scale", (3, 0)),
    "FP8": ("weight_scale", 0),
    "FP8_BLOCK": ("weight_scale", (1, 0)),
    "NVFP4": ("weight_global_scale", 0),
    "MXFP4": ("weight_scale", (3, 1), lambda exponent: exponent + 3),
    "MXFP8": ("weight_scale", (3, 1), lambda exponent: exponent - 5),
}


@pytest.mark.parametrize("preset", WRONG)
def test_one_wrong_scale_in_the_file_is_noticed(preset, theirs, foreign, with_wrong_scale):
    tensor, *change = WRONG[preset]
    check = with_wrong_scale(foreign(theirs(preset), "bfloat16"), f"model.layers.0.mlp.up_proj.{tensor}", *change)
    assert check["status"] == "fail"
    assert "model.layers.0.mlp.up_proj" in check["explanation"]


def test_a_head_that_is_plain_is_left_alone_though_the_config_names_it(theirs, foreign, logits_of, tmp_path):
    """As AutoRound writes FP8: transformers makes the head a scale out of what lies in memory, and gives NaN."""
    folder = theirs("FP8")
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["ignore"] = []
    (tmp_path / "config.json").write_text(json.dumps(config))
    cell = foreign(tmp_path)
    assert torch.equal(logits_of(cell), logits_of(foreign(folder)))
    assert len(cell.matrices) == 14


def test_a_file_that_lacks_a_scale_is_refused(theirs, foreign, tmp_path):
    folder = theirs("W4A16")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight_scale"]
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="up_proj"):
        foreign(tmp_path, "bfloat16")


ROTATED = {"R4": {"type": "hadamard", "apply": [{"targets": ["re:.*down_proj$"], "location": "input"}]}}
IN_WEIGHTS = {"R1": {"type": "hadamard", "apply": [{"targets": ["re:.*o_proj$"], "location": "weight_output"}]}}
UNREAD = {
    "its format marlin-24 is not read here": {"format": "marlin-24"},
    "its weights are sparse": {"sparsity_config": {"format": "sparse-24-bitmask"}},
    "transform_config`: input": {"transform_config": {"config_groups": ROTATED}},
    "output_activations": {"config_groups": {"g": {"targets": ["Linear"], "output_activations": {"num_bits": 8}}}},
    r"does not take `config_groups.g.*actorder": {
        "config_groups": {
            "g": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 32, "actorder": "group"}}
        }
    },
    "does not know a scheme of its config": {"config_groups": {"W1A99": ["Linear"]}},
}
READ = (
    {},
    {"config_groups": {"W8A8": ["Linear"]}},
    {"transform_config": {"config_groups": IN_WEIGHTS}},
    {"sparsity_config": {"format": "dense", "sparsity_structure": "2:4"}},
)


def stated_by(folder) -> dict:
    return json.loads((folder / "config.json").read_text())["quantization_config"]


@pytest.mark.parametrize("reason", UNREAD)
def test_what_is_not_read_is_refused_by_name(reason, theirs):
    assert re.search(reason, compressed_tensors.unreadable(stated_by(theirs("W4A16")) | UNREAD[reason], "cpu") or "")


@pytest.mark.parametrize("change", READ)
def test_what_is_read_is_not_refused(change, theirs):
    assert compressed_tensors.unreadable(stated_by(theirs("W4A16")) | change, "cpu") is None


@pytest.mark.parametrize(
    "targets",
    [
        ["re:.*proj", "model.layers.0.mlp.up_proj"],
        ["re:.*proj", "re:.*mlp.*"],
        ["re:.*mlp.*", "re:.*proj"],
        ["Linear", "re:.*up_proj"],
        ["Linear", "model.layers.0.mlp"],
        ["Embedding", "re:model"],
    ],
)
def test_of_several_schemes_the_library_takes_the_same(targets):
    from compressed_tensors.utils.match import match_targets

    name = "model.layers.0.mlp.up_proj"
    stated = {"config_groups": {f"group_{i}": {"targets": [target]} for i, target in enumerate(targets)}}
    chosen = compressed_tensors_config.scheme_of(stated, name)
    assert chosen is not None
    assert chosen["targets"] == match_targets(name, torch.nn.Linear(2, 2), targets)[:1]


def test_integers_whose_inputs_are_rounded_take_a_byte_each(theirs, foreign, passes):
    """W4A8 is stored in bytes: 8 bits a weight and a bfloat16 scale for 32 of them."""
    scheme = scheme_for("W4A16")
    scheme.input_activations = scheme_for("W8A8").input_activations
    passes(foreign(theirs("W4A8", scheme), "bfloat16"), 8.5)


def copied(folder, tmp_path, tensors=None, **change):
    """A copy of a checkpoint with more tensors and other values in its config."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= change
    (tmp_path / "config.json").write_text(json.dumps(config))
    whole = load_file(folder / "model.safetensors") | (tensors or {})
    save_file(whole, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def test_a_quantized_cache_beside_weights_that_are_unpacked(theirs, foreign, bare_logits, logits_of, tmp_path):
    cache = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
    scales = {
        f"model.layers.{i}.self_attn.{part}_scale": torch.tensor([0.02], dtype=torch.bfloat16)
        for i in range(2)
        for part in "kv"
    }
    cell = foreign(copied(theirs("W4A16"), tmp_path, scales, kv_cache_scheme=cache), "bfloat16")
    assert len(cell.matrices) == 14
    plain = logits_of(foreign(theirs("W4A16"), "bfloat16"))
    assert mean_kl(plain, logits_of(cell)) > 1e-6  # the cache is rounded
    if cell.model.dtype == torch.bfloat16:
        assert mean_kl(bare_logits(tmp_path, "bfloat16"), logits_of(cell)) < 1e-6


@pytest.mark.parametrize("preset", ["W4A16", "W8A8"])
def test_a_compressed_file_is_read_as_one_though_its_config_calls_it_frozen(
    preset, theirs, foreign, logits_of, tmp_path
):
    cell = foreign(copied(theirs(preset), tmp_path, quantization_status="frozen"), "bfloat16")
    assert torch.equal(logits_of(cell), logits_of(foreign(theirs(preset), "bfloat16")))


def test_zero_points_of_another_shape_end_in_a_sentence(theirs, foreign, tmp_path):
    """transformers takes them as they are."""
    tensor = "model.layers.0.mlp.up_proj.weight_zero_point"
    zeros = load_file(theirs("W4A16_ASYM") / "model.safetensors")[tensor]
    cell = foreign(copied(theirs("W4A16_ASYM"), tmp_path, {tensor: zeros[:, :-1].contiguous()}), "bfloat16")
    matrix = next(m for m in cell.matrices if m.name.endswith("layers.0.mlp.up_proj"))
    with pytest.raises(
        UserError, match=r"tensors of model\.layers\.0\.mlp\.up_proj are not those of .* of 128 × 64 \("
    ):
        matrix.dequantize()


def test_weights_that_were_not_compressed_are_refused(theirs, foreign, tmp_path):
    name = "model.layers.0.mlp.up_proj"
    folder = copied(theirs("W8A8"), tmp_path, {f"{name}.weight": torch.ones(128, 64, dtype=torch.bfloat16)})
    with pytest.raises(UserError, match=rf"was not compressed .*{name} has 16-bit weights with scales beside them"):
        foreign(folder, "bfloat16")


# ---------------------------------------------------------------- arithmetic by hand


@pytest.mark.parametrize("bits", range(2, 9))
def test_words_are_unpacked_from_the_low_bits_up(bits):
    """Over the end of a word where they straddle it; the highest bit of a word is no sign."""
    numbers = torch.randint(0, 2**bits, (3, 64 // bits), generator=torch.Generator().manual_seed(0))
    numbers[0] = 2**bits - 1
    words = [sum(n << (bits * i) for i, n in enumerate(line)) for line in numbers.tolist()]
    unsigned = torch.tensor([[w & 0xFFFFFFFF, w >> 32] for w in words])
    packed = torch.where(unsigned >= 2**31, unsigned - 2**32, unsigned).int()
    for stored in (packed, unsigned):  # GPTQ's zero points, one added, come as unsigned words
        assert packing.unpack_words(stored, bits, 64 // bits).tolist() == numbers.tolist()
        assert packing.unpack_words(stored, bits, 5).tolist() == numbers[:, :5].tolist()
        with pytest.raises(ValueError, match="2 words do not hold"):
            packing.unpack_words(stored, bits, 64 // bits + 1)
        assert packing.unpack_words(stored[:0], bits, 5).shape == (0, 5)
        assert packing.unpack_words(torch.stack([stored] * 2, -1)[..., 0], bits, 5).tolist() == numbers[:, :5].tolist()
        one_word = stored[:, :1].t().contiguous().t()  # as zero points of a single group, transposed
        assert packing.unpack_words(one_word, bits, 32 // bits).tolist() == numbers[:, : 32 // bits].tolist()


@pytest.mark.parametrize("shape", [(), (1, 1), (6, 1), (1, 5), (3, 4), (2, 3), (4, 3)])
def test_each_scale_covers_an_equal_part(shape):
    """The last of 4 over 6 rows, and of 3 over 20 columns, is cut."""
    matrix, scales = torch.arange(120.0).view(6, 20), torch.rand(shape)
    expanded = packing.expand(scales, 6, 20)
    assert torch.equal(packing.times(matrix.clone(), scales), matrix * expanded)
    assert torch.equal(packing.less(matrix.clone(), scales), matrix - expanded)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2])
def test_each_byte_is_the_number_that_pytorch_reads(dtype):
    every = torch.arange(256, dtype=torch.uint8).view(16, 16).view(dtype)
    torch.testing.assert_close(packing.to_float32(every), every.float(), rtol=0, atol=0, equal_nan=True)


def test_numbers_in_float32_are_a_copy():
    """What is made of them is multiplied in place."""
    stored = torch.ones(2, 3)
    packing.times(packing.to_float32(stored), torch.tensor(3.0))
    assert torch.equal(stored, torch.ones(2, 3))


def test_fp4_and_exponents_by_hand():
    assert packing.unpack_fp4(torch.tensor([[0x1F, 0x72]], dtype=torch.uint8)).tolist() == [[-6.0, 0.5, 1.0, 6.0]]
    assert packing.exponent_scale(torch.tensor([127, 128, 120], dtype=torch.uint8)).tolist() == [1.0, 2.0, 2.0**-7]


def test_rounding_of_inputs_by_hand():
    # to even where two are as near: 2.5 lies between 2 and 3, of which 2 has the even code; 5 between 4 and 6
    values = torch.tensor([0.2, 0.25, 0.75, 2.5, 3.5, 5.0, -7.0])
    assert activations.nearest_fp4(values).tolist() == [0.0, 0.0, 1.0, 2.0, 4.0, 4.0, -6.0]
    groups = torch.tensor([[1.0, 0.5, -0.3, 0.0]])
    by_hand = torch.tensor([[127.0, 64.0, -38.0, 0.0]]) / 127.5
    torch.testing.assert_close(activations.integers(groups, 8, symmetric=True), by_hand)
    assert activations.mx(torch.tensor([[6.0, 0.3]]), 4).tolist() == [[6.0, 0.5]]  # scale 1: 0.3 is nearest to 0.5
    assert float(activations.power_of_two_scale(torch.tensor([[7.5]]), 4)) == 2.0  # within a quarter of 8
    assert float(activations.power_of_two_scale(torch.tensor([[6.9]]), 4)) == 1.0
