"""AWQ packed by hand, with layers that its maker left in 16 bits."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from quantharm.forensics.checks.logits import mean_kl
from quantharm.forensics.checks.weights import check_method_is_real
from quantharm.quantizers.formats import awq

BY_AUTOROUND = {"quant_method": "auto-round", "packing_format": "auto_round:auto_awq", "bits": 4, "group_size": 64}


@pytest.mark.parametrize("by_autoround", [False, True])
@pytest.mark.parametrize(("key", "left"), [("self_attn", 8), ("layers.1.mlp", 3)])
def test_layers_that_were_left_alone(key, left, by_autoround, awq_checkpoint, awq_cell, foreign, logits_of, tmp_path):
    """autoawq looks for a key anywhere in a name; transformers would make room for packed weights there.

    AutoRound packs zero points that are not in the middle as AWQ, and names layers by patterns.
    """
    folder, _, known = awq_checkpoint
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    tensors = load_file(folder / "model.safetensors")
    for name in known:
        if key in name:
            tensors = {k: t for k, t in tensors.items() if not k.startswith(f"{name}.")}
            tensors[f"{name}.weight"] = known[name].half()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["modules_to_not_convert"] = [key]
    if by_autoround:
        config["quantization_config"] = BY_AUTOROUND | {"extra_config": {f".*{key}.*": {"bits": 16}}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    cell = foreign(tmp_path, "float16")
    assert len(cell.matrices) == len(known) - left
    real = check_method_is_real(cell.record, cell.matrices, cell.model)
    assert real["status"] == "pass", real
    assert f"its config excludes {left} others" in real["explanation"]
    assert mean_kl(logits_of(awq_cell), logits_of(cell)) < 1e-3


@pytest.mark.parametrize("groups", [2, 3, 8])
def test_scales_of_other_groups_are_not_spread_over_the_matrix(groups, monkeypatch):
    words = {"qweight": torch.zeros(128, 8, dtype=torch.int32), "qzeros": torch.zeros(4, 8, dtype=torch.int32)}
    damaged = words | {"scales": torch.ones(groups, 64).half()}
    monkeypatch.setattr("quantharm.quantizers.quantized_layers.stored_tensors", lambda checkpoint, name: damaged)
    with pytest.raises(RuntimeError, match="size"):
        awq.dequantize(None, "", 32)
