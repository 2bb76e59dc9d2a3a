"""Shapes of published models, for checkpoints of random weights, as their public configurations state them.

Needs no ML library: the configuration and the resources of jobs are computed from it.
"""

import difflib
import json
import os
from pathlib import Path

from quantharm.common.checkpoint_files import CheckpointConfig
from quantharm.common.errors import UserError

MISTRAL_7B = {  # Mistral-7B-Instruct-v0.2
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1_000_000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
}
PHI_3_MINI = {  # Phi-3-mini-4k-instruct
    "model_type": "phi3",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32064,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "sliding_window": 2047,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
QWEN25_05B = {  # Qwen2.5-0.5B-Instruct
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "tie_word_embeddings": True,
}
ARCHITECTURES: dict[str, CheckpointConfig] = {
    "mistral-7b": MISTRAL_7B,
    "phi-3-mini": PHI_3_MINI,
    "qwen2.5-0.5b": QWEN25_05B,
}


def read_architecture(name: str) -> CheckpointConfig:
    """The shape called `name`, or the configuration in the file (or the folder's config.json) of that name.

    Raises UserError where there is neither.
    """
    if name in ARCHITECTURES:
        return dict(ARCHITECTURES[name])
    path = Path(name) / "config.json" if os.path.isdir(name) else Path(name)
    if not os.path.isfile(path):
        close = difflib.get_close_matches(name, list(ARCHITECTURES), 1)
        hint = f"did you mean `{close[0]}`?" if close else f"there are {', '.join(ARCHITECTURES)}"
        raise UserError(f"architecture {name!r} is neither a shape known here nor a config.json; {hint}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        config = None
    if not isinstance(config, dict) or "model_type" not in config:
        raise UserError(f"{path} is not a model's configuration (JSON with a `model_type`); name another file")
    return config


def parameter_count(config: CheckpointConfig) -> int:
    """Weights of the matrices of a decoder with gated MLPs; norms and biases, less than a thousandth, are left out."""
    width, vocabulary = config.get("hidden_size", 0), config.get("vocab_size", 0)
    heads = config.get("num_attention_heads", 1)
    head = config.get("head_dim") or width // heads
    key_values = config.get("num_key_value_heads") or heads
    attention = 2 * width * heads * head + 2 * width * key_values * head
    layer = attention + 3 * width * config.get("intermediate_size", 0)
    embeddings = width * vocabulary * (1 if config.get("tie_word_embeddings") else 2)
    return config.get("num_hidden_layers", 0) * layer + embeddings
