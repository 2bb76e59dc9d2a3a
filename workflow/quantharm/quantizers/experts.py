"""Sparse mixtures: transformers keeps the experts of a layer in one parameter of three dimensions.

No quantizer here takes that: bitsandbytes and autoawq look for linear layers, which are 5 % of a small Mixtral's
weights. Needs no ML library.
"""

from typing import Any

EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")  # by architecture


def experts_of(checkpoint_config: dict[str, Any]) -> int:
    """Experts of a layer, as config.json says; 1 for a dense model."""
    parts = [checkpoint_config, checkpoint_config.get("text_config")]
    stated = [part.get(key) for part in parts if isinstance(part, dict) for key in EXPERT_KEYS]
    return max([1, *(number for number in stated if isinstance(number, int))])


def conflict_of_experts(checkpoint_config: dict[str, Any], library: str) -> str | None:
    experts = experts_of(checkpoint_config)
    if experts == 1:
        return None
    return (
        f"it is a sparse mixture of {experts} experts a layer, which transformers keeps in one tensor and {library} "
        "leaves in 16 bits; name a checkpoint that somebody quantized whole as a `pretrained` method"
    )
