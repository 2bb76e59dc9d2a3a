"""Sparse mixtures: transformers keeps the experts of a layer in one parameter of three dimensions.

bitsandbytes, autoawq and torchao look for linear layers, which are 5 % of a small Mixtral's weights, and leave experts
in 16 bits; gptqmodel and compressed-tensors are given the experts taken apart into linear layers, by the package
defuser, which gptqmodel brings. Their checkpoints hold each expert's matrices on their own, and are loaded into a model
that is taken apart before its weights are read. The first two functions need no ML library.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers.core_model_loading import WeightRenaming

    from quantharm.common.checkpoint_files import CheckpointConfig

EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")  # by architecture
ONE_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.")
PUBLISHED = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}  # Mixtral's names of an expert's matrices
PUBLISHED_PLACE = ".block_sparse_moe."  # in place of .mlp.
FEW_TOKENS_SHARE = 0.005  # of all tokens; an expert that fewer reach is rounded to nearest by gptqmodel


def experts_of(checkpoint_config: "CheckpointConfig") -> int:
    """Experts in a layer by config.json; 1 for a dense model."""
    parts = [checkpoint_config, checkpoint_config.get("text_config")]
    stated = [part.get(key) for part in parts if isinstance(part, dict) for key in EXPERT_KEYS]
    return max([1, *(number for number in stated if isinstance(number, int))])


def conflict_of_experts(checkpoint_config: "CheckpointConfig", library: str) -> str | None:
    """Why a library that leaves experts in 16 bits cannot take a model; None for a dense model."""
    experts = experts_of(checkpoint_config)
    if experts == 1:
        return None
    return (
        f"it is a sparse mixture of {experts} experts a layer, which transformers keeps in one tensor and {library} "
        "leaves in 16 bits; name a checkpoint that somebody quantized whole as a `pretrained` method"
    )


def take_apart(model) -> None:
    """Turns a mixture's experts into linear layers, in place, on any device; leaves a dense model as it is."""
    if experts_of(model.config.to_dict()) > 1:
        import defuser

        defuser.convert_model(model, cleanup_original=True)


def published_name(name: str) -> str:
    """The name of an expert's module in Mixtral's own checkpoints, and in those made from them."""
    if not ONE_EXPERT.match(f"{name}."):
        return name
    place, _, kind = name.replace(".mlp.", PUBLISHED_PLACE).rpartition(".")
    return f"{place}.{PUBLISHED.get(kind, kind)}"


def stores_apart(folder: Path) -> bool:
    """Whether a quantized checkpoint holds quantized matrices of single experts.

    Plain ones are joined by transformers' own rules: taken apart, bitsandbytes would hold them for packed ones.
    """
    from quantharm.common.checkpoint_files import gguf_file, read_checkpoint_config, weight_files
    from quantharm.quantizers.formats.files import FLOATS, headers_of_files

    if gguf_file(folder):
        return False
    config = read_checkpoint_config(folder)
    if experts_of(config) == 1 or "quantization_config" not in config:
        return False
    by_module = headers_of_files(weight_files(folder))
    of_experts = (headers for name, headers in by_module.items() if ONE_EXPERT.match(f"{name}."))
    return any(header.dtype not in FLOATS for headers in of_experts for header in headers.values())


def stores_published_names(folder: Path) -> bool:
    """Whether a checkpoint names experts as Mixtral's own checkpoints do."""
    from quantharm.common.checkpoint_files import weight_files
    from quantharm.quantizers.formats.files import headers_of_files

    return any(f"{PUBLISHED_PLACE}experts." in name for name in headers_of_files(weight_files(folder)))


def published_names() -> "list[WeightRenaming]":
    """transformers' renaming rules from published names to the modules of a model that was taken apart."""
    from transformers.core_model_loading import WeightRenaming

    pairs = [(PUBLISHED_PLACE, ".mlp."), *((f".{own}.", f".{kind}.") for kind, own in PUBLISHED.items())]
    return [WeightRenaming(source_patterns=source, target_patterns=target) for source, target in pairs]


@contextlib.contextmanager
def loaded_apart(folder: Path) -> Iterator[None]:
    """While this lasts, transformers takes a mixture apart before it reads a checkpoint that stores experts one by one.

    transformers' own rules, which would join the experts to one tensor, are left out.
    """
    if not stores_apart(folder):
        yield
        return
    from transformers import modeling_utils
    from transformers.quantizers.base import HfQuantizer

    preparing, rules = HfQuantizer.preprocess_model, modeling_utils.get_model_conversion_mapping

    def prepare(self, model, *arguments, **keywords):
        take_apart(model)
        return preparing(self, model, *arguments, **keywords)

    renamed = published_names() if stores_published_names(folder) else []

    def rules_of_others(*arguments, **keywords):
        known = rules(*arguments, **keywords)
        others = [rule for rule in known if not any("expert" in p or "sparse_moe" in p for p in rule.source_patterns)]
        return [*renamed, *others]

    HfQuantizer.preprocess_model, modeling_utils.get_model_conversion_mapping = prepare, rules_of_others
    try:
        yield
    finally:
        HfQuantizer.preprocess_model, modeling_utils.get_model_conversion_mapping = preparing, rules


def tokens_by_expert(tokens: dict[str, int]) -> dict[str, list[int]]:
    """{the experts of a layer: tokens that reached each}; tokens: {module: tokens it was calibrated on}."""
    reached: dict[str, dict[int, int]] = {}
    for name, number in tokens.items():
        match = ONE_EXPERT.match(name)
        if match:
            experts = reached.setdefault(match[1], {})
            experts[int(match[2])] = min(number, experts.get(int(match[2]), number))
    return {layer: [experts[i] for i in sorted(experts)] for layer, experts in reached.items()}


def starved_experts(reached: dict[str, list[int]], given: int) -> list[str]:
    """Names of the experts that fewer than FEW_TOKENS_SHARE of the `given` tokens reached, with their counts."""
    return [
        f"{layer}.{i} ({number} tokens)"
        for layer, experts in reached.items()
        for i, number in enumerate(experts)
        if number < FEW_TOKENS_SHARE * given
    ]
