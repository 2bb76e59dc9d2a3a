"""A tiny model as a GGUF file, by the package `gguf` alone."""

import gguf
import numpy as np


def write(model, path, types: dict[str, str], architecture: str = "llama", order: bool = True) -> None:
    """types: {part of llama.cpp's name: type}, the first that fits; order: whether rows are in its order."""
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
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    table = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    for name, parameter in model.state_dict().items():
        own, values = table.get_name(name, try_suffixes=(".weight", ".bias")), parameter.float().numpy()
        if order and architecture == "llama" and (".q_proj" in name or ".k_proj" in name):
            heads = config.num_attention_heads if ".q_proj" in name else config.num_key_value_heads
            half = values.shape[0] // heads // 2
            values = values.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(values.shape)
        wanted = next((t for part, t in types.items() if part in own and values.ndim == 2), "F32")
        kind = gguf.GGMLQuantizationType[wanted]
        values = np.ascontiguousarray(values)
        file.add_tensor(own, values if wanted == "F32" else gguf.quants.quantize(values, kind), raw_dtype=kind)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
