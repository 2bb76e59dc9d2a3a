"""A small model as a GGUF file, by the package `gguf` alone."""

import json
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np

BUILT_IN = Path(__file__).parents[2] / "data/reference-model"


def write(
    model,
    path,
    types: dict[str, str],
    architecture: str = "llama",
    order: bool = True,
    tokenizer: Path | None = None,
    head: bool = True,
) -> None:
    """types: {part of llama.cpp's name of a matrix: type}, the first that fits; other matrices and vectors are F32.

    order: whether Llama's query and key rows are in llama.cpp's order; tokenizer: a folder whose tokens are written;
    head: whether the output head is written, which else is the embeddings.
    """
    config, file = model.config, gguf.GGUFWriter(str(path), architecture)
    file.add_block_count(config.num_hidden_layers)
    file.add_context_length(config.max_position_embeddings)
    file.add_embedding_length(config.hidden_size)
    file.add_feed_forward_length(config.intermediate_size)
    file.add_head_count(config.num_attention_heads)
    file.add_head_count_kv(config.num_key_value_heads)
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    file.add_rope_freq_base(config.rope_parameters["rope_theta"])
    file.add_vocab_size(config.vocab_size)
    file.add_name("tiny")
    if width := getattr(config, "head_dim", None):
        file.add_key_length(width)
    if tokenizer is not None:
        add_tokens(file, tokenizer)
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    table = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    for name, values in matrices_of(model, file):
        own = table.get_name(name, try_suffixes=(".weight", ".bias"))
        if own == "output.weight" and not head:
            continue
        if order and architecture == "llama" and (".q_proj" in name or ".k_proj" in name):
            heads = config.num_attention_heads if ".q_proj" in name else config.num_key_value_heads
            half = values.shape[0] // heads // 2
            values = values.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(values.shape)
        wanted = next((t for part, t in types.items() if part in own and values.ndim > 1), "F32")
        kind = gguf.GGMLQuantizationType[wanted]
        values = np.ascontiguousarray(values)
        file.add_tensor(own, values if wanted == "F32" else gguf.quants.quantize(values, kind), raw_dtype=kind)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def matrices_of(model, file: gguf.GGUFWriter) -> Iterator[tuple[str, np.ndarray]]:
    """(transformers' name, values); of experts gate and up apart, as llama.cpp keeps them."""
    if experts := getattr(model.config, "num_experts", None):
        file.add_expert_count(experts)
        file.add_expert_used_count(model.config.num_experts_per_tok)
    for name, parameter in model.state_dict().items():
        values = parameter.float().numpy()
        if ".experts." not in name:
            yield name, values
        elif name.endswith("gate_up_proj"):
            for kind, half in zip(("gate_proj", "up_proj"), np.split(values, 2, axis=1), strict=True):
                yield f"{name.removesuffix('gate_up_proj')}{kind}.weight", half
        else:
            yield f"{name}.weight", values


def add_tokens(file: gguf.GGUFWriter, folder: Path) -> None:
    """A byte-level BPE tokenizer, as llama.cpp reads it."""
    from transformers import AutoTokenizer

    description = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    special = {token["content"] for token in description["added_tokens"]}
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in description["model"]["merges"]]
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre("default")
    file.add_token_list(tokens)
    file.add_token_types([3 if token in special else 1 for token in tokens])
    file.add_token_merges(merges)
    file.add_bos_token_id(tokenizer.bos_token_id)
    file.add_eos_token_id(tokenizer.eos_token_id)
