"""The source record of a checkpoint folder."""

import json

import pytest

from quantharm.common.errors import UserError
from quantharm.common.files import sha256_of_text
from quantharm.models.loading import load_tokenizer
from quantharm.models.source import describe, tokenizer_hashes


def test_source_record_of_the_reference_model(reference_source):
    expected = {"architecture": "MistralForCausalLM", "hidden_size": 256, "layers": 8, "vocabulary": 8192}
    assert expected.items() <= reference_source.items()
    assert reference_source["context"] == 1024
    assert reference_source["chat_template_sha256"] is None


def test_hash_of_the_tokenizer_changes_with_its_files(copy_of_reference, reference_source):
    assert tokenizer_hashes(copy_of_reference)["tokenizer_sha256"] == reference_source["tokenizer_sha256"]
    (copy_of_reference / "chat_template.jinja").write_text("{{ messages }}")
    assert tokenizer_hashes(copy_of_reference)["chat_template_sha256"] is not None
    path = copy_of_reference / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8") + " ", encoding="utf-8")
    assert tokenizer_hashes(copy_of_reference)["tokenizer_sha256"] != reference_source["tokenizer_sha256"]


def test_a_pickled_quantized_checkpoint_is_refused_even_where_pickle_is_allowed(copy_of_reference):
    for path in copy_of_reference.glob("*.safetensors*"):
        path.unlink()
    (copy_of_reference / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="only as pickle, in which quantized checkpoints are not read here"):
        describe("m", "m", copy_of_reference, None, True, False, quantized=True)


def test_the_hash_of_a_chat_template_is_of_the_one_that_is_used(copy_of_reference):
    """A tokenizer_config.json may list several, and a file of its own stands before them."""
    path = copy_of_reference / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    several = [{"name": "tool_use", "template": "{{ tools }}"}, {"name": "default", "template": "{{ messages }}"}]
    for given in ("{{ messages }}", several):
        path.write_text(json.dumps(settings | {"chat_template": given}), encoding="utf-8")
        source = describe("m", "m", copy_of_reference, None, False, False)
        used = load_tokenizer(source).get_chat_template()
        assert source["chat_template_sha256"] == sha256_of_text(used) == sha256_of_text("{{ messages }}")
    (copy_of_reference / "chat_template.jinja").write_text("{{ messages[0] }}")
    source = describe("m", "m", copy_of_reference, None, False, False)
    assert source["chat_template_sha256"] == sha256_of_text(load_tokenizer(source).get_chat_template())
