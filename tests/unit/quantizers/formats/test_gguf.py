"""GGUF, by the package `gguf` alone: its writer, its rounding, its table of names."""

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf_writer import write

from quantharm import fetch
from quantharm.common.errors import UserError
from quantharm.config.sources import check_pretrained
from quantharm.forensics.checks.kernel import check_kernel
from quantharm.forensics.checks.logits import mean_kl
from quantharm.forensics.checks.weights import check_method_is_real, check_stored_weights
from quantharm.forensics.reference_check import open_checkpoint
from quantharm.models.safety import verify_weights
from quantharm.models.source import describe
from quantharm.quantize import inspect_checkpoint
from quantharm.quantizers.formats import families
from quantharm.quantizers.formats.ggml import TYPES
from quantharm.quantizers.formats.gguf import architectures

IDS = [0, 5, 77, 200, 31, 8, 9, 250, 3]
REVISION = 40 * "a"
# As in a file that ends in _M: attention's values and the head in 8 bits, other kinds in fewer.
MIXED = {"attn_v": "Q8_0", "ffn_down": "Q5_0", "blk": "Q4_0", "output.weight": "Q8_0", "token_embd": "Q8_0"}


@pytest.fixture(scope="module")
def mixed(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "model-Q4_M.gguf"
    write(tiny("llama"), path, MIXED)
    return path


@pytest.mark.parametrize("name", TYPES)
def test_each_type_is_unpacked_as_the_package_does(name):
    """Random blocks, bit for bit; a random half float may be infinite or none."""
    kind, stored = TYPES[name], gguf.GGMLQuantizationType[name]
    assert gguf.GGML_QUANT_SIZES[stored] == (kind.weights, kind.bytes)
    blocks = np.random.default_rng(0).integers(0, 256, (64, kind.bytes), dtype=np.uint8)
    with np.errstate(invalid="ignore"):
        expected = gguf.quants.dequantize(blocks.reshape(1, -1), stored).reshape(64, -1)
    np.testing.assert_array_equal(kind.dequantize(torch.from_numpy(blocks)).numpy(), expected)


def test_a_file_of_several_types_is_read_as_transformers_reads_it(mixed, foreign, bare_logits, passes, logits_of):
    cell = foreign(mixed)
    assert passes(cell, 5.8333) < 1e-5
    logits = bare_logits(mixed.parent, gguf_file=mixed.name)
    assert mean_kl(logits, logits_of(cell)) < 1e-9
    assert cell.record["held_dequantized"]
    table = {
        kind: {t: row["matrices"] for t, row in rows.items()} for kind, rows in cell.record["by_layer_kind"].items()
    }
    assert table["v_proj"] == {"Q8_0": 2}
    assert table["down_proj"] == {"Q5_0": 2}
    assert table["lm_head"] == {"Q8_0": 1}  # as its maker wanted it
    assert table["q_proj"] == {"Q4_0": 2}
    assert cell.record["by_layer_kind"]["q_proj"]["Q4_0"]["bits_per_weight"] == pytest.approx(4.5)


def test_llama_cpp_holds_a_file_as_it_is_packed(mixed, foreign):
    """transformers unpacks it: the same file takes twice to four times as much there."""
    record = foreign(mixed, "bfloat16").record
    unpacked = inspect_checkpoint(record, "cpu")
    packed = inspect_checkpoint(record | {"settings": record["settings"] | {"engine": "llama.cpp"}}, "cpu")
    assert packed["weight_bytes"] == sum(tensor.n_bytes for tensor in gguf.GGUFReader(mixed).tensors)
    assert 2 * packed["weight_bytes"] < unpacked["weight_bytes"] + 2**14
    assert (unpacked["held_dequantized"], packed["held_dequantized"]) == (True, False)
    assert packed["bits_per_weight"] == unpacked["bits_per_weight"]


def test_other_architectures_have_their_own_order_of_rows(tiny, foreign, passes, tmp_path):
    write(tiny("qwen2"), tmp_path / "q.gguf", {"blk": "Q4_0"}, "qwen2")
    assert passes(foreign(tmp_path / "q.gguf"), 4.5) < 1e-5


def test_rows_in_the_wrong_order_would_be_noticed(mixed, foreign, monkeypatch):
    from quantharm.quantizers.formats import gguf as family

    cell = foreign(mixed)
    monkeypatch.setattr(family, "PERMUTED", {})
    assert check_kernel(cell.model, cell.matrices, [0, 5, 77, 200])["status"] == "fail"


LLAMA_31 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 4,
}  # fmt: skip
SHAPE = {
    "vocab_size": 384, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
LOST = {  # what transformers makes no configuration of: architecture in a file, and the original's configuration
    "biases": ("llama", transformers.LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True)),
    "scaled positions": ("llama", transformers.LlamaConfig(**SHAPE, rope_parameters=LLAMA_31)),
    "width of heads": ("qwen3", transformers.Qwen3Config(**SHAPE, head_dim=32)),
    "class": ("llama", transformers.MistralConfig(**SHAPE, sliding_window=4)),
}


def made_of(configuration):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(configuration).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(0, 0.3)
    model.get_output_embeddings().weight.mul_(20.0)
    return model


@pytest.mark.parametrize("lost", LOST)
def test_what_the_metadata_lose_is_taken_from_the_original(lost, foreign, save_checkpoint, logits_of, tmp_path):
    architecture, configuration = LOST[lost]
    model = made_of(configuration)
    source = save_checkpoint(model, tmp_path / "original")
    write(model, tmp_path / "m.gguf", {}, architecture)
    read = logits_of(foreign(tmp_path / "m.gguf", "float32", source))
    assert mean_kl(model(torch.tensor([IDS])).logits[0], read) < 1e-9


def test_without_the_original_what_would_be_left_out_is_refused(tmp_path):
    write(made_of(LOST["biases"][1]), tmp_path / "m.gguf", {})
    with pytest.raises(UserError, match=r"has 14 tensors that transformers has no place for .*blk\.0\.attn_\w+\.bias"):
        open_checkpoint(tmp_path / "m.gguf", "float32", "cpu", 1)


def test_a_file_of_another_model_is_refused(mixed, foreign, tiny, save_checkpoint, tmp_path):
    source = save_checkpoint(tiny("llama", hidden_size=32), tmp_path)
    with pytest.raises(UserError, match=r"no file of the model that it is compared with.*of another shape"):
        foreign(mixed, "float32", source)


@pytest.mark.parametrize("head", [True, False])
def test_a_model_may_share_its_head_with_the_embeddings(head, foreign, tiny, save_checkpoint, logits_of, tmp_path):
    model = tiny("llama_tied")
    source = save_checkpoint(model, tmp_path / "original")
    write(model, tmp_path / "m.gguf", {}, head=head)
    read = logits_of(foreign(tmp_path / "m.gguf", source=source))
    assert mean_kl(model(torch.tensor([IDS])).logits[0], read) < 1e-9


def test_a_file_may_have_more_embeddings_for_padding(foreign, tiny, save_checkpoint, logits_of, tmp_path):
    model = tiny("llama")
    source, expected = save_checkpoint(model, tmp_path / "original"), model(torch.tensor([IDS])).logits[0]
    model.resize_token_embeddings(400)
    write(model, tmp_path / "m.gguf", {})
    read = logits_of(foreign(tmp_path / "m.gguf", source=source))
    assert read.shape[1] == 400
    assert mean_kl(expected, read[:, :384]) < 1e-9


def test_a_file_that_lacks_the_head_of_a_model_is_refused(foreign, tiny, save_checkpoint, tmp_path):
    """transformers and llama.cpp would take the embeddings."""
    source = save_checkpoint(tiny("llama"), tmp_path / "original")
    write(tiny("llama"), tmp_path / "m.gguf", {}, head=False)
    with pytest.raises(UserError, match=r"no file of the model .* 1 missing.*lm_head\.weight"):
        foreign(tmp_path / "m.gguf", source=source)


def test_each_expert_is_seen(foreign, passes, save_checkpoint, tmp_path):
    configuration = transformers.Qwen3MoeConfig(
        **SHAPE, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, norm_topk_prob=True
    )
    model = made_of(configuration)
    source = save_checkpoint(model, tmp_path / "original")
    write(model, tmp_path / "m.gguf", {"_inp.": "F32", "blk": "Q8_0"}, "qwen3moe")
    cell = foreign(tmp_path / "m.gguf", "float32", source)
    assert len(cell.matrices) == 2 * (4 + 3 * 4)
    assert passes(cell, 8.5) < 1e-5
    stored = check_stored_weights(cell.model, cell.matrices, tmp_path / "original", cell.record)
    assert stored["status"] == "pass", stored
    assert "in 32 matrices" in stored["explanation"]


def test_what_a_file_holds_as_floats_is_no_fault(tiny, foreign, tmp_path):
    write(tiny("llama"), tmp_path / "m.gguf", {"ffn": "Q4_0"})
    cell = foreign(tmp_path / "m.gguf")
    real = check_method_is_real(cell.record, cell.matrices, cell.model)
    assert real["status"] == "pass"
    assert "its config excludes 8 others" in real["explanation"]
    write(tiny("llama"), tmp_path / "f.gguf", {})
    plain = foreign(tmp_path / "f.gguf")
    assert check_method_is_real(plain.record, plain.matrices, plain.model)["status"] == "fail"


def test_a_changed_scale_fails_the_kernel_check(mixed, foreign):
    cell = foreign(mixed)
    cell.model.get_submodule("model.layers.1.mlp.down_proj").weight[:, :32] *= 3
    assert check_kernel(cell.model, cell.matrices, [0, 5, 77, 200])["status"] == "fail"


@pytest.mark.parametrize("name", ["blk.0.ffn_up.weight", "blk.1.ffn_down.weight", "blk.1.attn_v.weight"])
def test_one_wrong_scale_in_the_file_is_noticed(name, mixed, foreign, original):
    cell = foreign(mixed)
    assert check_stored_weights(cell.model, cell.matrices, original, cell.record)["status"] == "pass"
    before = bytearray(mixed.read_bytes())
    tensor = next(t for t in gguf.GGUFReader(mixed).tensors if t.name == name)
    start = tensor.data_offset + 5 * tensor.n_bytes // int(tensor.shape[1])  # the sixth row's first block
    scale = np.frombuffer(before[start : start + 2], np.float16) * np.float16(8)
    mixed.write_bytes(before[:start] + scale.tobytes() + before[start + 2 :])
    check = check_stored_weights(cell.model, cell.matrices, original, cell.record)
    mixed.write_bytes(before)
    assert check["status"] == "fail"
    assert "row 5 of model.layers" in check["explanation"]


def test_a_changed_file_is_noticed(tiny, tmp_path):
    path = tmp_path / "m.gguf"
    write(tiny("llama"), path, {"blk": "Q4_0"})
    files = describe("m", "m", path, None, False, False, quantized=True)["weight_files"]
    (tmp_path / "another.gguf").write_bytes(b"GGUF")  # repositories hold many, of which one was named
    verify_weights(path, files)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="changed after it was recorded"):
        verify_weights(path, files)


# ---------------------------------------------------------------- where it comes from, and what is refused


def test_a_model_is_no_gguf_file(mixed):
    with pytest.raises(UserError, match="quantizer: pretrained"):
        describe("m", str(mixed.parent), mixed.parent, None, False, False)
    assert fetch.resolve(str(mixed), None, False, False, quantized=True) == (mixed, None)
    with pytest.raises(UserError, match="GGUF"):
        fetch.resolve(str(mixed), None, False, False)


def test_a_file_in_the_hub_cache(mixed, tmp_path, monkeypatch):
    from huggingface_hub import constants

    snapshot = tmp_path / "models--owner--name" / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (snapshot / "m.gguf").write_bytes(mixed.read_bytes())
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(fetch, "ask_hub", lambda *_: "offline")
    path, commit = fetch.resolve("owner/name/m.gguf", REVISION, False, False, quantized=True)
    assert (path, commit) == (snapshot / "m.gguf", REVISION)
    with pytest.raises(UserError, match=r"n\.gguf"):
        fetch.resolve("owner/name/n.gguf", REVISION, False, False, quantized=True)


def test_the_configuration_takes_files_here_and_pinned_ones(mixed):
    def check(source, revision=None):
        check_pretrained({"methods": {"theirs": {"source": source, "revision": revision}}}, "theirs")

    check(str(mixed))
    check(str(mixed.parent))
    check("owner/name/m.gguf", REVISION)
    with pytest.raises(UserError, match="revision"):
        check("owner/name/m.gguf")
    with pytest.raises(UserError, match="no-such"):
        check("./no-such.gguf")


def test_what_is_not_read_is_refused_when_it_is_fetched(mixed, tiny, tmp_path):
    families.refuse_unreadable(mixed, "cpu")
    (tmp_path / "cut.gguf").write_bytes(mixed.read_bytes()[:2000])
    with pytest.raises(UserError, match="not a whole GGUF file"):
        families.refuse_unreadable(tmp_path / "cut.gguf", "cpu")
    write(tiny("llama"), tmp_path / "t.gguf", {"output.weight": "Q8_0"})
    reader_type = gguf.GGMLQuantizationType.Q8_0.to_bytes(4, "little")
    blob = (tmp_path / "t.gguf").read_bytes()
    at = blob.index(reader_type, blob.index(b"output.weight"))
    other = gguf.GGMLQuantizationType.IQ1_M.to_bytes(4, "little")
    (tmp_path / "t.gguf").write_bytes(blob[:at] + other + blob[at + 4 :])
    with pytest.raises(UserError, match=r"IQ1_M|not a whole"):
        families.refuse_unreadable(tmp_path / "t.gguf", "cpu")
    (tmp_path / "f.gguf").write_bytes(blob[:at] + (133).to_bytes(4, "little") + blob[at + 4 :])
    with pytest.raises(UserError, match=r"a type that the package gguf does not know \(.*133"):
        families.refuse_unreadable(tmp_path / "f.gguf", "cpu")


def test_one_part_of_a_split_file_is_refused(tmp_path):
    file = gguf.GGUFWriter(str(tmp_path / "m-00001-of-00002.gguf"), "llama")
    file.add_uint16("split.count", 2)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.close()
    with pytest.raises(UserError, match="one of 2 parts of a model"):
        families.refuse_unreadable(tmp_path / "m-00001-of-00002.gguf", "cpu")


def test_architectures_go_by_the_names_that_files_give_them():
    """qwen3moe, not transformers' qwen3_moe."""
    assert {"llama", "qwen3moe", "qwen2moe", "gpt-oss", "qwen35"} <= architectures()
