"""The cell of a GGUF file that llama.cpp runs: the file is a quantization of the cell's model, token by token."""

from pathlib import Path

from quantharm.common.checkpoint_files import gguf_file
from quantharm.common.errors import UserError
from quantharm.common.provenance import threads_of_process
from quantharm.common.records.quantization import CheckpointRecord
from quantharm.config.engines import KvCache
from quantharm.engines.llama_model import LlamaCppModel
from quantharm.engines.stated_ends import stated_eos_token_ids


def check_vocabulary(model: LlamaCppModel, tokenizer) -> None:
    """Raises UserError unless the file's tokens are the model's, id by id: ids go in as they are.

    A file may have more tokens at its end (padding), and spaces in tokens where the tokenizer has ▁.
    """
    own = tokenizer.get_vocab()
    if model.vocabulary_size < max(own.values()) + 1:
        raise UserError(
            f"{model.path} has {model.vocabulary_size} tokens, the model's tokenizer {max(own.values()) + 1}; it is "
            "not a file of this model: name another `source:`"
        )
    for text, token in own.items():
        in_file = model.token_text(token)
        if in_file != text and in_file.replace("▁", " ") != text.replace("▁", " "):
            raise UserError(
                f"token {token} is {in_file!r} in {model.path} and {text!r} in the model's tokenizer; it is not a file "
                "of this model: name another `source:`"
            )
    bos_in_file, bos = model.library.llama_vocab_bos(model.vocabulary), tokenizer.bos_token_id
    if bos is not None and bos_in_file >= 0 and bos != bos_in_file:
        raise UserError(
            f"{model.path} begins texts with token {bos_in_file}, the model's tokenizer with token {bos}; it is not a "
            "file of this model: name another `source:`"
        )


def open_cell(record: CheckpointRecord, device: str) -> LlamaCppModel:
    """The model of a cell; raises UserError where its checkpoint is no GGUF file of the cell's model."""
    from quantharm.models.loading import load_config, load_tokenizer
    from quantharm.models.safety import verify_weights

    checkpoint, source = Path(record["checkpoint"]), record["source"]
    verify_weights(checkpoint, record["weight_files"])
    file = gguf_file(checkpoint)
    if file is None:
        raise UserError(f"engine llama.cpp reads GGUF files, and {checkpoint} is none; choose another `engine:`")
    kv_cache: KvCache = record["settings"].get("kv_cache") or {}
    config = load_config(source)
    model = LlamaCppModel(file, config, threads_of_process(), kv_cache, device)
    check_vocabulary(model, load_tokenizer(source))
    # A file names one token that ends an answer; models that chat have several, and the baseline ends at each.
    ends = {*model.generation_config.eos_token_id, *stated_eos_token_ids(source["path"], config)}
    model.generation_config.eos_token_id = sorted(ends)
    return model
