"""A small Qwen2 with random weights and the built-in tokenizer's vocabulary, also as a GGUF file."""

from pathlib import Path

import torch
from gguf_writer import BUILT_IN, write
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM


def random_model(num_attention_heads: int = 2) -> Qwen2ForCausalLM:
    """Two layers, 64 wide; float32."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(BUILT_IN)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=num_attention_heads,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    model = Qwen2ForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if parameter.dim() == 2:
            parameter.mul_(4)  # else every distribution is nearly uniform, and no difference would show
    return model


def write_gguf(model, path: Path, type_name: str = "F32") -> None:
    """The model with matrices of a type of gguf.GGMLQuantizationType; vectors stay in float32."""
    write(model, path, {"": type_name}, "qwen2", tokenizer=BUILT_IN)
