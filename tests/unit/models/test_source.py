"""The source record of a checkpoint folder."""

from quantharm.models.source import tokenizer_hashes


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
