"""Methods by gptqmodel, compressed-tensors, torchao: made, loaded from disk, and what they stand for by hand."""

import importlib
import importlib.util
import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from stage_chain import QUANTIZERS, SETTINGS, Chain

from quantharm import fetch
from quantharm.common.errors import UserError
from quantharm.forensics.checks.kernel import check_kernel
from quantharm.forensics.checks.weights import check_bits_per_weight, check_method_is_real, check_stored_weights
from quantharm.models import loading
from quantharm.models.compute import multiplies_bytes_exactly
from quantharm.quantizers import (
    compressed_tensors,
    conditions,
    experts,
    gguf,
    gptq,
    importance_matrix,
    llama_cpp_tools,
    quantizable,
    quantizer_named,
)
from quantharm.quantizers.calibration_samples import samples_for

SHAPE = {
    "vocab_size": 384,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 128,
}
SPARSE = SHAPE | {"num_hidden_layers": 1}  # gptqmodel takes seconds for a layer's experts
MIXTURES = {
    "mixtral": lambda: transformers.MixtralConfig(**SPARSE, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **SPARSE, moe_intermediate_size=128, num_experts=4, num_experts_per_tok=2
    ),
    "gpt_oss": lambda: transformers.GptOssConfig(**SPARSE, num_local_experts=4, num_experts_per_tok=2),
}
CALIBRATION = {"calibration_samples": 6, "calibration_tokens": 64}
GPTQ = {key: value.get("default") for key, value in gptq.SETTINGS.items()} | CALIBRATION | {"group_size": 32}
# Bits a weight with bfloat16 scales; weight_shape, 16 bytes a matrix of packed integers, and MX's exponents included.
SCHEMES = {"W4A16": 4 + 16 / 128, "W8A8": 8, "FP8_DYNAMIC": 8, "FP8_BLOCK": 8, "NVFP4A16": 4.5, "MXFP4": 4.25}


EXACT_BYTES = pytest.mark.skipif(
    not multiplies_bytes_exactly(), reason="PyTorch multiplies 8-bit integers wrongly on this processor (no VNNI)"
)


@pytest.fixture(scope="module", autouse=True)
def transformers_as_before():
    """gptqmodel puts blocks of its own into transformers' modules, for the life of the process."""
    models = [f"models.{kind}.modeling_{kind}" for kind in ("mixtral", "qwen3_moe", "gpt_oss")]
    modules = [
        importlib.import_module(f"transformers.{name}") for name in (*models, "conversion_mapping", "modeling_utils")
    ]
    before = [dict(vars(module)) for module in modules]
    yield
    for module, names in zip(modules, before, strict=True):
        vars(module).update(names)


@pytest.fixture(scope="module")
def dense(save_checkpoint, tmp_path_factory):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**SHAPE))
    return save_checkpoint(model.to(torch.bfloat16), tmp_path_factory.mktemp("dense"))


@pytest.fixture(scope="module")
def mixture(save_checkpoint, tmp_path_factory):
    made = {}

    def of(kind):
        if kind not in made:
            torch.manual_seed(0)
            model = transformers.AutoModelForCausalLM.from_config(MIXTURES[kind]())
            made[kind] = save_checkpoint(model.to(torch.bfloat16), tmp_path_factory.mktemp(kind))
        return made[kind]

    return of


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "calibration.txt"
    path.write_text("".join(f"The number {i * i} is the square of {i}. " for i in range(60)), encoding="utf-8")
    return path


def passes(cell) -> None:
    """The checks that one cell passes by itself."""
    kernel = check_kernel(cell.model, cell.matrices, list(range(2, 66)))
    real = check_method_is_real(cell.record, cell.matrices, cell.model)
    bits = check_bits_per_weight(cell.record)
    assert [check["status"] for check in (kernel, real, bits)] == ["pass"] * 3, (kernel, real, bits)


@pytest.mark.parametrize(
    ("quantizer", "chosen"),
    [
        ("compressed_tensors", {"scheme": "W4A16"}),
        ("compressed_tensors", {"scheme": "FP8_DYNAMIC"}),
        ("torchao", {"kind": "int8_weight_only"}),
    ],
)
def test_a_setting_changes_the_checkpoint_unless_it_is_said_to_have_no_effect(quantizer, chosen, dense, make_cell):
    module = quantizer_named(quantizer)
    first, second = (
        load_file(make_cell(dense, quantizer, chosen | {"group_size": size}).checkpoint / "model.safetensors")
        for size in (32, 128)
    )
    same = first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert same == ("group_size" in module.without_effect(chosen))


@pytest.mark.parametrize("name", ["autoround", "gguf", "torchao", "compressed_tensors"])
def test_settings_without_effect_are_settings(name):
    module = quantizer_named(name)
    default = {key: value["default"] for key, value in module.SETTINGS.items()}
    for key, value in module.SETTINGS.items():
        for choice in value.get("enum", [0, False, True]):
            assert module.without_effect(default | {key: choice}) < module.SETTINGS.keys()
    floats, rounded = default | {"scheme": "NVFP4"}, default | {"iterations": 0}
    if name == "autoround":
        assert module.without_effect(default) == set()
        assert {"group_size", "symmetric"} <= module.without_effect(floats)
        assert module.without_effect(rounded) == {"seed"}
    if name == "gguf":
        assert "calibration_samples" in module.without_effect(default)
        assert module.without_effect(default | {"importance": True}) == set()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_compressed_tensors(make_cell, dense, scheme):
    cell = make_cell(dense, "compressed_tensors", {"scheme": scheme, "group_size": 128})
    passes(cell)
    assert cell.record["bits_per_weight"] == pytest.approx(SCHEMES[scheme], rel=0.03)
    assert len(cell.matrices) == 14
    weights = load_file(f"{dense['path']}/model.safetensors")
    for matrix in cell.matrices:
        weight = weights[f"{matrix.name}.weight"].float()
        limit = 0.01 if scheme == "W8A8" else 0.03 if scheme.startswith("FP8") else 0.13
        assert float((matrix.dequantize() - weight).norm() / weight.norm()) < limit


@pytest.mark.parametrize("changed", [{"symmetric": False, "desc_act": True}, {"bits": 8, "group_size": -1}])
def test_gptq(make_cell, dense, text, changed):
    settings = GPTQ | changed
    cell = make_cell(dense, "gptq", settings, calibration=text)
    passes(cell)
    reached = cell.record["calibration"]
    assert (reached["samples_reached"], reached["tokens_reached"]) == (6, 6 * 64)
    assert "expert_tokens" not in cell.record
    matrix = cell.matrices[0]
    order = load_file(cell.checkpoint / "model.safetensors")[f"{matrix.name}.g_idx"]
    in_order = torch.equal(order, order.sort().values)
    assert in_order is not settings["desc_act"]


@pytest.mark.parametrize("kind", MIXTURES)
def test_gptq_quantizes_experts_and_says_how_many_tokens_reached_each(make_cell, mixture, text, kind):
    cell = make_cell(mixture(kind), "gptq", GPTQ, calibration=text)
    passes(cell)
    assert sum(".experts." in matrix.name for matrix in cell.matrices) == 4 * 3
    tokens = cell.record["expert_tokens"]
    assert len(tokens) == 1
    assert all(sum(experts) == 2 * 6 * 64 for experts in tokens.values())  # two experts a token
    assert cell.record["calibration"]["tokens_reached"] == 6 * 64
    stored = check_stored_weights(cell.model, cell.matrices, Path(mixture(kind)["path"]), cell.record)
    assert stored["status"] == "pass", stored
    if kind == "mixtral":
        as_published(cell, make_cell)


def as_published(cell, make_cell) -> None:
    """The same file under the names of Mixtral on the hub, as somebody else's checkpoint."""
    folder = cell.checkpoint.parent / "published"
    shutil.copytree(cell.checkpoint, folder)
    names = {".mlp.": ".block_sparse_moe.", ".gate_proj.": ".w1.", ".up_proj.": ".w3.", ".down_proj.": ".w2."}
    renamed = {}
    for key, tensor in load_file(folder / "model.safetensors").items():
        for own, published in names.items():
            key = key.replace(own, published)
        renamed[key] = tensor
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    source = fetch.describe("theirs", str(folder), folder, None, False, False, quantized=True)
    theirs = make_cell(source, "pretrained", {"resolved": source, "backend": None})
    passes(theirs)
    assert len(theirs.matrices) == len(cell.matrices)
    tokens = torch.arange(2, 66)[None]
    assert torch.equal(theirs.model(tokens).logits, cell.model(tokens).logits)


@pytest.mark.parametrize("kind", MIXTURES)
def test_compressed_tensors_quantizes_experts(make_cell, mixture, kind):
    source = mixture(kind)
    cell = make_cell(source, "compressed_tensors", {"scheme": "FP8_DYNAMIC", "group_size": 128})
    passes(cell)
    assert sum(".experts." in matrix.name for matrix in cell.matrices) == 4 * 3
    whole = loading.load_checkpoint(source["path"], source, "bfloat16", "cpu", 1)
    tokens = torch.arange(2, 66)[None]
    ours, theirs = (model(tokens).logits.float().log_softmax(-1) for model in (cell.model, whole))
    assert float((theirs.exp() * (theirs - ours)).sum(-1).mean()) < 2e-3


def test_experts_that_few_tokens_reach_are_named():
    log = {"layers.0.mlp.experts.0.gate_proj": 5000, "layers.0.mlp.experts.0.up_proj": 4990, "layers.0.q_proj": 10000}
    log |= {"layers.0.mlp.experts.1.gate_proj": 0, "layers.0.mlp.experts.2.up_proj": 49}
    reached = experts.tokens_by_expert(log)
    assert reached == {"layers.0.mlp.experts": [4990, 0, 49]}
    assert experts.starved_experts(reached, 10000) == [
        "layers.0.mlp.experts.1 (0 tokens)",
        "layers.0.mlp.experts.2 (49 tokens)",
    ]


@pytest.mark.parametrize(
    ("quantizer", "settings", "words"),
    [
        ("compressed_tensors", {"scheme": "W4A16", "group_size": 64}, "takes 64 inputs at a time"),
        ("compressed_tensors", {"scheme": "FP8_BLOCK", "group_size": 128}, "takes 128 inputs at a time"),
        ("gptq", GPTQ | {"group_size": 64}, "group_size 64 does not divide"),
        ("gptq", GPTQ | {"desc_act": True, "act_group_aware": True}, "two orders"),
    ],
)
def test_refused_before_anything_is_loaded(save_checkpoint, tmp_path, quantizer, settings, words):
    shape = SHAPE | {"hidden_size": 96, "head_dim": 32, "num_attention_heads": 3, "num_key_value_heads": 1}
    model = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**shape))
    source = save_checkpoint(model, tmp_path / "narrow")
    with pytest.raises(UserError, match=words):
        conditions.refuse_conflict("mine", quantizer, settings, source)


def test_scales_are_those_of_each_blocks_largest_weight():
    """[4, 4] weights in blocks of 2 × 2 and groups of 2, by hand."""
    from types import SimpleNamespace

    weight = torch.tensor([[1.0, -2, 0, 4], [3, 0, 0, 0], [0, 0, -8, 1], [0, 5, 0, 0]])
    block = SimpleNamespace(strategy="block", block_structure=[2, 2], group_size=None)
    low, high = compressed_tensors.extremes(weight, block)
    assert low.tolist() == [[-2, 0], [0, -8]]
    assert high.tolist() == [[3, 4], [5, 1]]
    group = SimpleNamespace(strategy="group", block_structure=None, group_size=2)
    low, high = compressed_tensors.extremes(weight, group)
    assert low.tolist() == [[-2, 0], [0, 0], [0, -8], [0, 0]]
    assert high[1].tolist() == [3, 0]


def test_linear_layers_of_a_config_that_ignores_some_are_left(make_cell, dense):
    cell = make_cell(dense, "compressed_tensors", {"scheme": "W8A8", "group_size": 128})
    stated = json.loads((cell.checkpoint / "config.json").read_text())["quantization_config"]
    assert stated["ignore"] == ["lm_head"]
    assert quantizable.head_name(cell.model) not in {matrix.name for matrix in cell.matrices}


@pytest.mark.parametrize(
    ("kind", "bits", "limit"),
    [
        ("int8_weight_only", 8, 0.01),
        pytest.param("int8_dynamic", 8, 0.01, marks=EXACT_BYTES),
        ("float8_weight_only", 8, 0.03),
    ],
)
def test_torchao(make_cell, dense, kind, bits, limit):
    cell = make_cell(dense, "torchao", {"kind": kind, "group_size": 128})
    passes(cell)
    assert cell.record["bits_per_weight"] == pytest.approx(bits + 32 / 160, abs=0.1)  # a float32 scale a row
    kept = 2 * (2 * 384 * 128 + 5 * 128)  # embeddings, head and norms in 16 bits
    assert cell.record["weight_bytes"] == pytest.approx(kept + sum(m.stored_bytes for m in cell.matrices), rel=0.002)
    assert len(cell.matrices) == 14
    weights = load_file(f"{dense['path']}/model.safetensors")
    for matrix in cell.matrices:
        weight = weights[f"{matrix.name}.weight"].float()
        assert float((matrix.dequantize() - weight).norm() / weight.norm()) < limit


def test_torchao_packs_four_bits_on_a_gpu_only(dense):
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    with pytest.raises(UserError, match="on a GPU only"):
        conditions.refuse_conflict("mine", "torchao", {"kind": "int4_weight_only", "group_size": 128}, dense)


# ---------------------------------------------------------------- from entry to checks


@pytest.fixture(scope="module")
def chain(dense, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chain")
    with pytest.MonkeyPatch.context() as patch:
        yield Chain(folder, dense, patch).baseline()


@pytest.mark.parametrize(
    ("quantizer", "settings"),
    [
        ("compressed_tensors", {"scheme": "FP8_DYNAMIC", "group_size": 128}),
        ("gptq", GPTQ),
    ],
)
def test_every_stage_and_check(chain, text, quantizer, settings, monkeypatch):
    calibration = {"calibration": text} if quantizer == "gptq" else {}
    monkeypatch.setitem(QUANTIZERS, quantizer, quantizer)
    monkeypatch.setitem(SETTINGS, quantizer, settings)
    chain.call("quantize", quantizer, **calibration)
    for stage in ("generation", "perplexity", "divergence", "checks"):
        chain.call(stage, quantizer)
    status = {check["name"]: check["status"] for check in chain.read(f"{quantizer}/checks.json")["checks"]}
    judged = {name for name, how in status.items() if how != "skipped"}
    assert {"reload", "method_is_real", "bits_per_weight", "kernel", "stored_weights", "finite", "same_text"} <= judged
    failed = {name for name, how in status.items() if how == "fail"}
    assert failed <= {"calibration", "consistency"}  # random weights know no text
    assert chain.read(f"{quantizer}/divergence.json")["kl_nats"]["mean"] < 0.05


# ---------------------------------------------------------------- GGUF


@pytest.fixture(scope="module")
def importance(dense, text):
    samples = samples_for(dense, CALIBRATION, text)
    return samples, *importance_matrix.importance_matrix(dense, samples, "float32", "cpu", 1)


def test_an_importance_matrix_is_the_mean_square_of_each_input(dense, importance):
    samples, matrix, positions = importance
    assert positions == 6 * 64
    assert len(matrix) == 14
    model = loading.load_checkpoint(dense["path"], dense, "float32", "cpu", 1)
    first = model.model.layers[0].input_layernorm(model.model.embed_tokens(torch.tensor(samples)))
    expected = first.double().square().mean((0, 1))
    for name in ("blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight"):
        torch.testing.assert_close(matrix[name], expected, rtol=1e-5, atol=0)
    assert matrix["blk.1.ffn_down.weight"].shape == (256,)


def test_an_importance_matrix_is_written_as_llama_cpp_reads_it(tmp_path):
    importance_matrix.write_importance(
        {"blk.0.attn_q.weight": torch.tensor([0.5, 2.0], dtype=torch.float64)}, tmp_path / "file"
    )
    data = (tmp_path / "file").read_bytes()
    assert struct.unpack("<ii", data[:8]) == (1, 19)
    assert data[8:27] == b"blk.0.attn_q.weight"
    assert struct.unpack("<iiff", data[27:]) == (1, 2, 0.5, 2.0)


def test_gguf_without_its_tools_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"install envs/gguf\.txt"):
        llama_cpp_tools.tools()


def test_tensors_in_the_forks_own_type_are_told_by_what_llama_quantize_says():
    """A line begins with the tensor, which others may follow before it says what it converts to."""
    said = """[   9/ 272]  blk.0.ffn_up.weight - [  576,  1536,     1,     1], type =   bf16, converting to q3_K
[  10/ 272]                  blk.0.attn_v.weight - [  576,   192,     1,     1], type =   bf16,

cols 576 x 192 are not divisible by 256, required for q5_K - using fallback quantization q6_0
converting to q6_0 .. size =     0.21 MiB ->     0.09 MiB
[  11/ 272]               blk.1.attn_norm.weight - [  576,     1,     1,     1], type =    f32, size =    0.002 MB
"""
    assert llama_cpp_tools.in_types_of_the_fork(said) == ["blk.0.attn_v.weight"]
    assert llama_cpp_tools.in_types_of_the_fork(said.replace("converting to q6_0", "converting to q5_1")) == []


def test_mixtures_get_no_importance_matrix():
    assert gguf.conflict({"importance": True}, {"num_local_experts": 8})
    assert not gguf.conflict({"importance": False}, {"num_local_experts": 8})
    assert not gguf.conflict({"importance": True}, {})


@pytest.mark.parametrize("kind", ["Q4_K_M", "IQ4_XS"])
def test_gguf(make_cell, reference_source, root, kind):
    if importlib.util.find_spec("ik_llama_cpp") is None:
        pytest.skip("ik-llama-cpp-python is not in the evaluation environment; PYTHONPATH=.venv-extra/gguf has it")
    from quantharm.quantizers.formats import gguf as family

    settings = {key: value.get("default") for key, value in gguf.SETTINGS.items()} | CALIBRATION
    cell = make_cell(
        reference_source,
        "gguf",
        settings | {"type": kind, "importance": True},
        calibration=root / "data/calibration.txt",
    )
    passes(cell)
    assert cell.record["calibration"]["tokens_reached"] == 6 * 64
    assert len({matrix.stored_as for matrix in cell.matrices}) == 2  # a mixture of types
    assert family.value(cell.checkpoint, "general.name") == "reference"  # whatever folder it was converted in
