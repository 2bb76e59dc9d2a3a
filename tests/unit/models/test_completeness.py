"""Checkpoints that are not the whole model: what transformers would fill with random numbers is named and refused."""

import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import core_model_loading

from quantharm import fetch
from quantharm.common.errors import UserError
from quantharm.models import completeness
from quantharm.models.loading import load_checkpoint

TRUSTED = {"allow_pickle": True, "trust_remote_code": False}
LAYER = "model.layers.0"


@pytest.fixture(scope="module")
def checkpoints(tiny, save_checkpoint, tmp_path_factory):
    """{kind: folder} of whole tiny models."""
    folder = tmp_path_factory.mktemp("whole")
    mixture = transformers.MixtralConfig(
        vocab_size=384,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        max_position_embeddings=128,
    )
    made = {kind: tiny(kind, torch.bfloat16) for kind in ("llama", "llama_tied", "gpt2")}
    made["mixtral"] = transformers.AutoModelForCausalLM.from_config(mixture).to(torch.bfloat16)
    for kind, model in made.items():
        save_checkpoint(model, folder / kind)
    return {kind: folder / kind for kind in made}


@pytest.fixture
def changed(checkpoints, tmp_path):
    """changed(kind, change): a copy of a folder whose tensors, {name: tensor}, `change` has altered."""

    def make(kind, change):
        folder = tmp_path / kind
        shutil.copytree(checkpoints[kind], folder)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


def refused(function, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def every_refusal(folder) -> set[str]:
    """What each way in says: fetching, loading, and loading to quantize; the folder's name left out."""
    config = transformers.BitsAndBytesConfig(load_in_8bit=True)

    def load(**extra):
        load_checkpoint(folder, TRUSTED, "bfloat16", "cpu", 1, **extra)

    ways = [
        lambda: fetch.describe("m", str(folder), folder, None, False, False),
        load,
        lambda: load(quantization_config=config),
    ]
    return {refused(way).replace(str(folder), "") for way in ways}


@pytest.mark.parametrize("kind", ["llama", "llama_tied", "gpt2", "mixtral"])
def test_whole_models_are_accepted(checkpoints, kind):
    completeness.check_whole(checkpoints[kind], False)
    load_checkpoint(checkpoints[kind], TRUSTED, "float32", "cpu", 1)


def test_missing_tensors_are_named_and_counted(changed):
    norms = [f"{LAYER}.input_layernorm.weight", f"{LAYER}.post_attention_layernorm.weight", "model.norm.weight"]
    folder = changed("llama", lambda tensors: [tensors.pop(name) for name in norms])
    (message,) = every_refusal(folder)
    assert f"3 missing, which would be random numbers ({', '.join(norms)})" in message
    assert "another shape" not in message


def test_half_a_model_is_refused(changed):
    def halve(tensors):
        for name in sorted(tensors)[::2]:
            del tensors[name]

    (message,) = every_refusal(changed("llama", halve))
    assert "11 missing" in message
    assert "and 7 more" in message


def test_tensors_of_another_shape_are_named(changed):
    def cut(tensors):
        tensors[f"{LAYER}.self_attn.q_proj.weight"] = torch.zeros(32, 64, dtype=torch.bfloat16)

    (message,) = every_refusal(changed("llama", cut))
    assert f"1 of another shape ({LAYER}.self_attn.q_proj.weight: [32, 64], not [64, 64])" in message


def test_tensors_without_a_place_are_named(changed):
    def add(tensors):
        tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(128, 64)

    (message,) = every_refusal(changed("llama", add))
    assert "1 that LlamaForCausalLM has no place for (model.layers.2.mlp.up_proj.weight)" in message


def test_a_tied_head_need_not_be_stored_and_an_untied_one_must(changed):
    assert "lm_head.weight" not in load_file(changed("llama_tied", lambda _: None) / "model.safetensors")
    (message,) = every_refusal(changed("llama", lambda tensors: tensors.pop("lm_head.weight")))
    assert "1 missing, which would be random numbers (lm_head.weight)" in message


def test_an_embedding_that_a_head_is_tied_to_must_be_stored(changed):
    (message,) = every_refusal(changed("llama_tied", lambda tensors: tensors.pop("model.embed_tokens.weight")))
    assert "model.embed_tokens.weight" in message


def test_what_the_class_ignores_is_no_fault(changed):
    def add(tensors):  # buffers that old checkpoints store
        tensors[f"{LAYER}.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)

    completeness.check_whole(changed("llama", add), False)


@pytest.mark.parametrize("part", ["w1", "w2"])
def test_a_missing_expert_is_named(changed, part):
    """w1 is half of a matrix that transformers puts together, w2 a whole one."""
    folder = changed("mixtral", lambda t: t.pop(f"{LAYER}.block_sparse_moe.experts.1.{part}.weight"))
    (message,) = every_refusal(folder)
    assert f"{LAYER}.mlp.experts." in message


def test_pickled_weights_are_judged_too(checkpoints, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(checkpoints["llama"], folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    fetch.describe("m", str(folder), folder, None, True, False)
    del tensors["model.norm.weight"]
    torch.save(tensors, folder / "pytorch_model.bin")
    assert "1 missing" in refused(fetch.describe, "m", str(folder), folder, None, True, False)


def test_fetching_reads_no_weights(checkpoints, tmp_path):
    """The account comes from the headers: a file whose numbers are all NaN is whole."""
    folder = tmp_path / "m"
    shutil.copytree(checkpoints["llama"], folder)
    tensors = {k: torch.full_like(t, torch.nan) for k, t in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model = completeness.load_whole(folder, device_map={"": "meta"})
    assert {p.device.type for p in model.parameters()} == {"meta"}
    completeness.check_whole(folder, False)


# ---------------------------------------------------------------- quantizers that do not load through load_checkpoint


@pytest.mark.parametrize("damage", ["missing", "cut", "pointer"])
def test_awq_refuses_what_is_not_whole_before_it_computes(changed, tmp_path, damage):
    from quantharm.quantizers import awq

    folder = changed("llama", lambda tensors: tensors.pop("model.norm.weight") if damage == "missing" else None)
    path = folder / "model.safetensors"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
    if damage == "pointer":
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    text = tmp_path / "calibration.txt"
    text.write_text("Words to calibrate on. " * 100)
    settings = {"calibration_samples": 2, "calibration_tokens": 16, "bits": 4, "group_size": 32, "zero_point": True}
    source = TRUSTED | {"path": str(folder)}
    message = refused(awq.quantize, source, settings, "bfloat16", "cpu", 1, tmp_path / "out", text)
    words = {"missing": "1 missing", "cut": "is not a whole safetensors file", "pointer": "Git LFS pointer"}
    assert words[damage] in message


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (
            ValueError("AConfig requires alib to be installed. Install with `pip install alib`"),
            "in the versions of envs/",
        ),
        (ImportError("This file requires packages that were not found: einops"), "in the versions of envs/"),
        (ValueError("its model type is not known\nor: pip install --upgrade transformers"), "fetch it again"),
    ],
)
def test_a_package_that_loading_asks_for_is_no_fault_of_the_model(checkpoints, monkeypatch, error, advice):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)
    assert advice in refused(load_checkpoint, checkpoints["llama"], TRUSTED, "float32", "cpu", 1)


def conversion_that_raises(error, monkeypatch, checkpoints):
    """What a load says whose quantizer raises an error while it makes a matrix."""
    from transformers.integrations.bitsandbytes import Bnb4bitQuantize

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(Bnb4bitQuantize, "convert", fail)
    config = transformers.BitsAndBytesConfig(load_in_4bit=True)
    load_checkpoint(checkpoints["llama"], TRUSTED, "bfloat16", "cpu", 1, quantization_config=config)


def test_a_quantizer_that_refuses_is_no_fault_of_the_model(checkpoints, monkeypatch):
    """torchao's float8_dynamic on a CPU, say; the folder was called incomplete."""
    message = refused(conversion_that_raises, AssertionError("only on a GPU\nof a kind"), monkeypatch, checkpoints)
    assert "cannot be quantized here: only on a GPU (14 of its tensors, the first model.layers.0.mlp." in message


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried"), MemoryError("can't allocate memory: 9 bytes")]
)
def test_memory_that_runs_out_while_a_quantizer_works_is_said_so(checkpoints, monkeypatch, error):
    with pytest.raises(type(error), match=str(error)[:20]):
        conversion_that_raises(error, monkeypatch, checkpoints)


@pytest.mark.parametrize(
    ("error", "raised", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), torch.OutOfMemoryError, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), RuntimeError, "allocate"),
        (OSError(5, "Input/output error"), UserError, "Input/output error"),
    ],
)
def test_what_breaks_a_load_off_is_no_fault_of_the_model(checkpoints, monkeypatch, error, raised, words):
    """A model too large for its GPU was said to lack the tensors that had not been read yet."""
    read, copy = [], core_model_loading._materialize_copy

    def fail(*arguments, **keywords):
        read.append(1)
        if len(read) > 5:
            raise error
        return copy(*arguments, **keywords)

    monkeypatch.setattr(core_model_loading, "_materialize_copy", fail)
    with pytest.raises(raised, match=words) as caught:
        load_checkpoint(checkpoints["llama"], TRUSTED, "float32", "cpu", 1)
    assert "missing" not in str(caught.value)
