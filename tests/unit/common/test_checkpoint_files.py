"""Which files of a folder are the weights, and folders that hold something else than a model."""

import json

import pytest
import torch
from safetensors.torch import save_file

from quantharm.common.checkpoint_files import (
    pickled_weight_files,
    refuse_gguf_name,
    refuse_other_kinds,
    weight_files,
    weight_names,
)
from quantharm.common.errors import UserError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 5\n"


def folder_of(folder, *names: str, **contents):
    """A folder of these files, each as long as its place in the list; `contents` by suffix-less name are JSON."""
    folder.mkdir(exist_ok=True)
    for i, name in enumerate(names, 1):
        (folder / name).write_bytes(b"w" * i)
    for name, content in ({"config": {"model_type": "llama"}} | contents).items():
        if content is not None:
            (folder / f"{name.replace('_index', '.safetensors.index')}.json").write_text(json.dumps(content))
    return folder


def index(*shards: str) -> dict:
    return {"metadata": {}, "weight_map": {f"t{i}": shard for i, shard in enumerate(shards)}}


def names(files) -> list[str]:
    return [p.name for p in files]


def refused(function, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_one_file_is_loaded_and_nothing_beside_it(tmp_path):
    folder = folder_of(tmp_path, "consolidated.safetensors", "model.fp16.safetensors", "model.safetensors", "x.bin")
    assert names(weight_files(folder)) == ["model.safetensors"]
    refuse_other_kinds(folder)


def test_shards_are_those_of_the_index(tmp_path):
    folder = folder_of(
        tmp_path, "a.safetensors", "b.safetensors", "c.safetensors", model_index=index("b.safetensors", "a.safetensors")
    )
    assert names(weight_files(folder)) == ["a.safetensors", "b.safetensors"]


def test_one_file_goes_before_an_index_as_in_transformers(tmp_path):
    folder = folder_of(tmp_path, "a.safetensors", "model.safetensors", model_index=index("a.safetensors"))
    assert names(weight_files(folder)) == ["model.safetensors"]


@pytest.mark.parametrize("stated", ["other.safetensors", "other.safetensors.index.json"])
def test_the_file_that_the_config_names_goes_before_all(tmp_path, stated):
    folder = folder_of(
        tmp_path,
        "model.safetensors",
        "other.safetensors",
        config={"model_type": "llama", "transformers_weights": stated},
        other_index=index("other.safetensors"),
    )
    assert names(weight_files(folder)) == ["other.safetensors"]


def test_pickled_files_are_those_of_their_index(tmp_path):
    folder = folder_of(tmp_path, "training_args.bin", "a.bin", "b.bin")
    assert pickled_weight_files(folder) == weight_files(folder) == []
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index("a.bin", "b.bin")))
    assert names(pickled_weight_files(folder)) == ["a.bin", "b.bin"]
    assert weight_files(folder) == []


def test_what_is_downloaded_is_what_would_be_loaded(tmp_path):
    folder = folder_of(tmp_path)
    assert weight_names(folder, False) == ["model.safetensors"]
    assert weight_names(folder, True) == ["model.safetensors", "pytorch_model.bin"]
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index("a.bin")))
    assert weight_names(folder, False) == ["model.safetensors"]
    assert weight_names(folder, True) == ["a.bin", "model.safetensors", "pytorch_model.bin"]
    folder_of(tmp_path, model_index=index("a.safetensors", "b/c.safetensors"))
    assert weight_names(folder, True)[:2] == ["a.safetensors", "b/c.safetensors"]


def test_what_transformers_loads_is_what_is_named(copy_of_reference, reference_source, monkeypatch):
    """Asked of transformers itself: the files that it opens, with others beside them."""
    from transformers import modeling_utils

    from quantharm.models.loading import load_checkpoint

    for name in ("consolidated.safetensors", "model.fp16.safetensors", "model-00003-of-00003.safetensors"):
        (copy_of_reference / name).write_bytes(b"not even safetensors")
    opened = []
    real = modeling_utils.safe_open
    monkeypatch.setattr(modeling_utils, "safe_open", lambda file, **k: opened.append(str(file)) or real(file, **k))
    load_checkpoint(copy_of_reference, reference_source, "bfloat16", "cpu", 1)
    assert sorted(set(opened)) == [str(p) for p in weight_files(copy_of_reference)]


# ---------------------------------------------------------------- no whole model


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}', "{"])
def test_a_damaged_index_ends_in_one_sentence(tmp_path, content):
    folder = folder_of(tmp_path, "a.safetensors")
    (folder / "model.safetensors.index.json").write_text(content)
    assert "is damaged" in refused(weight_files, folder)


@pytest.mark.parametrize("shard", ["../a.safetensors", "/etc/a.safetensors"])
def test_shards_outside_the_folder_are_refused(tmp_path, shard):
    assert "outside itself" in refused(weight_files, folder_of(tmp_path, model_index=index(shard)))


def test_missing_shards_are_named_and_counted(tmp_path):
    shards = [f"model-{i}.safetensors" for i in range(8)]
    message = refused(refuse_other_kinds, folder_of(tmp_path, shards[0], model_index=index(*shards)))
    assert "lacks 7 of the 8 weight files" in message
    assert "model-1.safetensors, model-2.safetensors, model-3.safetensors, model-4.safetensors and 3 more" in message


def test_shards_without_their_index_are_refused(tmp_path):
    message = refused(refuse_other_kinds, folder_of(tmp_path, "model-00001-of-00002.safetensors"))
    assert "model-00001-of-00002.safetensors but neither model.safetensors nor" in message


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "tokenizer.json", "tokenizer.model"])
def test_lfs_pointers_are_refused(tmp_path, name):
    folder = folder_of(tmp_path, "model.safetensors")
    (folder / name).write_bytes(POINTER)
    message = refused(refuse_other_kinds, folder)
    assert f"{folder / name} is a Git LFS pointer" in message
    assert "git lfs pull" in message


@pytest.mark.parametrize("beside", [None, {"model_type": "llama"}], ids=["alone", "beside a model"])
def test_adapters_are_refused(tmp_path, beside):
    folder = folder_of(tmp_path, "adapter_model.safetensors", "model.safetensors", config=beside, adapter_config={})
    message = refused(refuse_other_kinds, folder)
    assert ("and not a model" if beside is None else "beside a model, which would be loaded without it") in message
    assert "merge" in message


def test_folders_of_gguf_are_refused_unless_they_hold_a_model_too(tmp_path):
    assert "GGUF" in refused(refuse_other_kinds, folder_of(tmp_path / "a", "m.Q4_K_M.gguf", config=None))
    assert "GGUF" in refused(refuse_other_kinds, folder_of(tmp_path / "b", "m.Q4_K_M.gguf"))
    refuse_other_kinds(folder_of(tmp_path / "c", "m.Q4_K_M.gguf", "model.safetensors"))


def test_names_of_gguf_are_refused():
    for source in ("models/m.Q8_0.gguf", "./m.GGUF", "owner/Model-7B-GGUF"):
        assert "safetensors" in refused(refuse_gguf_name, source)
    refuse_gguf_name("owner/Model-7B")


# ---------------------------------------------------------------- files beside the weights


def test_files_beside_the_weights_decide_no_figure(copy_of_reference, reference_source):
    """Neither size, hash, scan nor the memory that jobs ask for, and no dequantized matrix."""
    import shutil

    from quantharm.config.resources import billion_parameters
    from quantharm.forensics.detection import storage, weights
    from quantharm.models.source import describe
    from quantharm.quantizers.quantized_layers import stored_tensors

    def figures():
        record = describe("m", "m", copy_of_reference, None, False, False)
        stored = stored_tensors(copy_of_reference, "model.layers.0.self_attn.q_proj")["weight"]
        return {
            "bytes": record["checkpoint_bytes"],
            "sha256": record["weights_sha256"],
            "billions": billion_parameters({"billion_parameters": None, "source": str(copy_of_reference)}),
            "scanned": [m.name for m in weights.read_matrices(copy_of_reference, ["lm_head.weight"])],
            "tensors": storage.stored_tensors(copy_of_reference),
            "stored": stored.double().sum().item(),
        }

    alone = figures()
    assert alone["bytes"] == reference_source["checkpoint_bytes"]
    shutil.copyfile(
        copy_of_reference / "model-00001-of-00002.safetensors", copy_of_reference / "consolidated.safetensors"
    )
    save_file({"model.layers.0.self_attn.q_proj.weight": torch.zeros(256, 256)}, copy_of_reference / "z.safetensors")
    save_file({"codes": torch.zeros(64, 64, dtype=torch.uint8)}, copy_of_reference / "other.safetensors")
    assert figures() == alone
