"""Mixtures of experts: which checkpoints are loaded with their experts taken apart."""

import json

import pytest
import torch
from safetensors.torch import save_file

from quantharm.quantizers.experts import stores_apart

PLACE = "model.layers.0.mlp.experts.0.up_proj"
STORED = {
    "16 bits": ({"weight": torch.ones(4, 4, dtype=torch.bfloat16)}, False),  # as transformers saves them beside NF4
    "8 bits": ({"weight": torch.ones(4, 4, dtype=torch.int8), "weight_scale": torch.ones(4)}, True),
    "packed": ({"qweight": torch.ones(1, 4, dtype=torch.int32), "scales": torch.ones(1, 4)}, True),
}


@pytest.mark.parametrize("kind", STORED)
def test_only_packed_experts_are_taken_apart(kind, tmp_path):
    tensors, apart = STORED[kind]
    packed = {"model.layers.0.self_attn.q_proj.qweight": torch.ones(1, 4, dtype=torch.int32)}
    save_file({f"{PLACE}.{part}": tensor for part, tensor in tensors.items()} | packed, tmp_path / "model.safetensors")
    config = {"model_type": "qwen3_moe", "num_experts": 4, "quantization_config": {"quant_method": "gptq"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert stores_apart(tmp_path) == apart
