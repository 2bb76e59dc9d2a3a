"""torchao, by the library itself through transformers."""

import json

import pytest
import torch
import transformers
from safetensors.torch import save_file

from quantharm.forensics.checks import kernel
from quantharm.forensics.checks.kernel import check_kernel
from quantharm.forensics.checks.logits import mean_kl
from quantharm.forensics.checks.weights import check_stored_weights
from quantharm.models.compute import multiplies_bytes_exactly
from quantharm.models.loading import set_compute_dtype
from quantharm.quantizers.formats import torchao

# kind → bits a weight of the 64-wide model: codes of a byte, a float32 scale and an 8-bit zero point a row (or group)
BITS = {"int8": 8.5556, "int8_dynamic": 8.5556, "float8": 8.4444, "intx4": 8.7500}


EXACT_BYTES = pytest.mark.skipif(
    not multiplies_bytes_exactly(), reason="PyTorch multiplies 8-bit integers wrongly on this processor (no VNNI)"
)
KINDS = [pytest.param(kind, marks=EXACT_BYTES if kind == "int8_dynamic" else ()) for kind in BITS]


def config_of(kind: str):
    import torchao.quantization as library

    return {
        "int8": lambda: library.Int8WeightOnlyConfig(version=2),
        "int8_dynamic": lambda: library.Int8DynamicActivationInt8WeightConfig(version=2),
        "float8": library.Float8WeightOnlyConfig,
        "intx4": lambda: library.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=library.PerGroup(32)),
    }[kind]()


@pytest.fixture(scope="module")
def theirs(tiny, save_checkpoint, byte_tokenizer, tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("torchao"), {}
    save_checkpoint(tiny("llama", torch.bfloat16), folder / "source")

    def make(kind: str):
        if kind not in made:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder / "source",
                dtype=torch.bfloat16,
                device_map={"": "cpu"},
                quantization_config=transformers.TorchAoConfig(config_of(kind)),
            )
            model.save_pretrained(folder / kind)
            byte_tokenizer().save_pretrained(folder / kind)
            made[kind] = folder / kind
        return made[kind]

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_read_as_transformers_reads_it(kind, theirs, foreign, bare_logits, passes, logits_of):
    cell = foreign(theirs(kind), "bfloat16")
    assert len(cell.matrices) == 14
    assert not any(m.held_dequantized for m in cell.matrices)
    assert all((m.round_inputs is not None) == (kind == "int8_dynamic") for m in cell.matrices)
    assert passes(cell, BITS[kind]) < 0.01
    for matrix in cell.matrices:  # as the library's own tensor unpacks itself
        own = cell.model.get_submodule(matrix.name).weight.dequantize().float()
        torch.testing.assert_close(matrix.dequantize(), own, rtol=2**-7, atol=1e-6)
    if cell.model.dtype == torch.bfloat16:
        assert mean_kl(bare_logits(theirs(kind), "bfloat16"), logits_of(cell)) < 1e-9


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.values[0] in ("float8", "int8_dynamic")])
def test_in_a_float32_model_its_layers_keep_their_dtype(kind, theirs, foreign, passes, logits_of):
    cell = foreign(theirs(kind))
    assert passes(cell, BITS[kind]) < 0.01
    assert logits_of(cell).dtype == torch.float32
    assert cell.model.lm_head.weight.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("granularity", ["PerRow", "PerTensor"])
@pytest.mark.parametrize("kind", ["float8", "symmetric", "asymmetric"])
def test_inputs_are_rounded_as_the_library_rounds_them(kind, granularity, dtype):
    """Float8's own kernels need a GPU, but its rounding of inputs does not."""
    from torchao.quantization import granularity as granularities
    from torchao.quantization.quant_primitives import MappingType
    from torchao.quantization.quantize_.common import _choose_quant_func_and_quantize_tensor
    from torchao.quantization.quantize_.workflows.float8.float8_tensor import QuantizeTensorToFloat8Kwargs
    from torchao.quantization.quantize_.workflows.int8.int8_tensor import QuantizeTensorToInt8Kwargs

    values = (torch.randn(16, 512, generator=torch.Generator().manual_seed(0)) + 0.3).to(dtype)
    arguments = {"granularity": getattr(granularities, granularity)()}
    data = {"granularity": {"_type": granularity}}
    if kind == "float8":
        own = QuantizeTensorToFloat8Kwargs(**arguments)
    else:
        own = QuantizeTensorToInt8Kwargs(mapping_type=MappingType[kind.upper()], **arguments)
        data["mapping_type"] = {"_data": kind.upper()}
    held = _choose_quant_func_and_quantize_tensor(values, own)
    zero = held.zero_point.float() if kind != "float8" else 0.0
    rounding = torchao.rounding_of({"act_quant_kwargs": {"_type": type(own).__name__, "_data": data}}, dtype)
    assert torch.equal(rounding(values.float()), (held.qdata.float() - zero) * held.scale)


def test_a_changed_scale_fails_the_kernel_check(theirs, foreign):
    cell = foreign(theirs("int8"), "bfloat16")
    cell.model.get_submodule("model.layers.1.mlp.down_proj").weight.scale[:8] *= 3
    assert check_kernel(cell.model, cell.matrices, [0, 5, 77, 200])["status"] == "fail"


def test_wrong_products_of_bytes_fail_the_kernel_check_which_says_so(theirs, foreign, monkeypatch):
    """As on processors without VNNI, where sums saturate."""
    right = torch._int_mm
    monkeypatch.setattr(torch, "_int_mm", lambda *given: right(*given).clamp(-20_000, 20_000))
    monkeypatch.setattr(kernel, "multiplies_bytes_exactly", multiplies_bytes_exactly.__wrapped__)
    cell = foreign(theirs("int8_dynamic"), "bfloat16")
    check = check_kernel(cell.model, cell.matrices, list(range(2, 66)))
    assert check["status"] == "fail", check
    assert check["explanation"].endswith("multiplies 8-bit integers wrongly on this processor (no VNNI instructions)")


@pytest.mark.parametrize("kind", ["int8", "float8", "intx4"])
def test_one_wrong_scale_in_the_file_is_noticed(kind, theirs, foreign, with_wrong_scale):
    tensor = "model.layers.1.mlp.down_proj._weight_scale"
    assert with_wrong_scale(foreign(theirs(kind), "bfloat16"), tensor, (5, 0))["status"] == "fail"


# ---------------------------------------------------------------- int4, which only a GPU packs: packed here by hand


ROWS, COLUMNS, GROUP = 24, 640, 64


def plain_codes(codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> dict[str, torch.Tensor]:
    """codes of 0 to 15, scales and zeros [rows, groups]; as torchao keeps them for mslk's kernels."""
    signed = [[code - 8 for code in row] for row in codes.tolist()]
    data = [[(row[i] & 15) | ((row[i + 1] & 15) << 4) for i in range(0, len(row), 2)] for row in signed]
    packed = torch.tensor(data, dtype=torch.uint8).view(torch.int8)
    return {"qdata": packed, "scale": scales.t().contiguous(), "zero_point": zeros.t().contiguous()}


def tiled_codes(codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> dict[str, torch.Tensor]:
    """For the tensor cores: register i of thread t holds row t / 4, column (t % 4) · 2 + (i % 2) + 8 · (i ≥ 2)."""
    rows, columns = -(-codes.shape[0] // 8) * 8, -(-codes.shape[1] // 1024) * 1024
    filled = torch.zeros(rows, columns, dtype=torch.int64)
    filled[: codes.shape[0], : codes.shape[1]] = codes
    words = torch.zeros(rows // 8, columns // 128, 32, 4, dtype=torch.int64)
    for thread in range(32):
        for pair in range(4):
            registers = []
            for tile in (2 * pair, 2 * pair + 1):
                for i in range(4):
                    column = 16 * tile + (thread % 4) * 2 + i % 2 + 8 * (i >= 2)
                    registers.append(filled[thread // 4 :: 8, column::128])
            for place, register in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):  # from the low bits up
                words[:, :, thread, pair] |= registers[register] << (4 * place)
    both = torch.zeros(rows, columns // GROUP, 2, dtype=torch.bfloat16)
    both[: codes.shape[0], : scales.shape[1]] = torch.stack([scales, zeros], dim=-1)
    signed = (words + 2**31) % 2**32 - 2**31
    return {"qdata": signed.int(), "scale_and_zero": both.transpose(0, 1).contiguous()}


INT4 = {"Int4Tensor": (plain_codes, 4.5), "Int4TilePackedTo4dTensor": (tiled_codes, 4.5 * 1024 / 640)}


@pytest.fixture
def packed_int4(tmp_path):
    """packed_int4(class): (the matrix as it lies in a file, its weights by hand)."""
    random = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (ROWS, COLUMNS), generator=random)
    scales, zeros = torch.rand(2, ROWS, COLUMNS // GROUP, generator=random).bfloat16()
    wide_scales, wide_zeros = (part.float().repeat_interleave(GROUP, dim=1) for part in (scales, zeros))

    def pack(kind: str):
        if kind in INT4:
            tensors = INT4[kind][0](codes, scales, zeros)
        else:
            tensors = {"qdata": torch.zeros(ROWS, COLUMNS // 8, dtype=torch.int32), "scale": scales}
        stated = {"_type": kind, "_data": {"block_size": [1, GROUP]}}
        named = {f"x._weight_{part}": tensor for part, tensor in tensors.items()}
        save_file(named, tmp_path / "model.safetensors", metadata={"x.weight": json.dumps(stated)})
        matrix = torchao.inspect("x", torch.nn.Linear(COLUMNS, ROWS, bias=False), tmp_path)
        return matrix, (codes - 8) * wide_scales + wide_zeros

    return pack


@pytest.mark.parametrize("kind", INT4)
def test_int4_is_unpacked(kind, packed_int4):
    matrix, weights = packed_int4(kind)
    assert torch.equal(matrix.dequantize(), weights)
    assert matrix.stored_bytes == matrix.formula_bytes == ROWS * COLUMNS * INT4[kind][1] / 8


def test_a_layout_that_is_not_read_is_named_by_the_checks(packed_int4, tmp_path):
    matrix, _ = packed_int4("Int4PlainInt32Tensor")
    save_file({"x.weight": torch.ones(ROWS, COLUMNS)}, tmp_path / "model.safetensors")
    model = torch.nn.Module()
    stored = check_stored_weights(model, [matrix], tmp_path, {"quantizer": "torchao"})
    for check in (check_kernel(model, [matrix], [0]), stored):
        assert check["status"] == "skipped"
        assert check["explanation"].startswith("torchao's Int4PlainInt32Tensor has a layout that is not read here")


def test_the_layout_for_gpus_is_refused_on_a_cpu():
    stated = {"quant_type": {"default": {"_type": "Int4WeightOnlyConfig"}}}
    assert "made for GPUs" in torchao.unreadable(stated, "cpu")
    assert torchao.unreadable(stated, "cuda") is None


def test_in_float32_its_layers_take_and_give_float32(theirs, foreign, logits_of):
    """As on a CPU without 16-bit instructions; they multiply in the dtype that they were made for."""
    cell = foreign(theirs("int8"), "bfloat16")
    before = {m.name: cell.model.get_submodule(m.name).weight.dequantize() for m in cell.matrices}
    set_compute_dtype(cell.model, "pretrained", "bfloat16", "cpu", "float32")
    assert logits_of(cell).dtype == torch.float32
    for name, weight in before.items():
        layer = cell.model.get_submodule(name)
        assert layer.weight.dtype == torch.bfloat16
        assert torch.equal(layer.weight.dequantize(), weight)
        x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(0))
        assert layer(x).dtype == torch.float32
        assert torch.equal(layer(x), torch.nn.functional.linear(x.bfloat16(), layer.weight).float())


def test_modules_for_which_a_configuration_states_nothing_are_excluded():
    one = {"_type": "Int8WeightOnlyConfig", "_data": {}}
    by_name = {"a.up": None, "re:.*down": None, "re:.*down_too": one, "b.up.weight": one}

    def excluded(by_name, kept=None):
        stated = {"quant_type": {"default": {"_type": "FqnToConfig", "_data": {"fqn_to_config": by_name}}}}
        names = ["a.up", "a.down", "b.up", "a.gate"]
        return torchao.excluded(stated | {"modules_to_not_convert": kept}, names)

    assert excluded(by_name | {"_default": one}) == {"a.up", "a.down"}
    assert excluded(by_name) == {"a.up", "a.down", "a.gate"}
    assert excluded({"_default": one}, ["a.gate"]) == {"a.gate"}
