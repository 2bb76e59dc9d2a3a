"""Gaussian noise on the weights that a quantizer will round, before it does.

A defense against checkpoints that are built to change when they are quantized (Egashira et al. 2024): their weights
lie inside the boxes that round to another model's codes, and noise of the size of a box moves them out. Noise is added
to the matrices that a quantizer could take, experts included, not to embeddings or the output head. Each stored matrix
has a generator of its own, seeded by the seed and its name, so the noise does not depend on how the checkpoint is split
into files.
"""

import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from quantharm.common.errors import UserError
from quantharm.common.records.quantization import NoiseAdded, NoiseSettings
from quantharm.common.records.source import SourceRecord

if TYPE_CHECKING:
    from torch import Tensor


def quantizable_matrices(folder: Path, source: SourceRecord) -> tuple[dict[str, str], dict[str, bool]]:
    """({stored name: parameter}, {parameter: whether it is stored as [inputs, outputs]}) of the quantizable weights.

    Found from the files' headers and the architecture alone, by the rules by which transformers renames and joins
    tensors as it loads them. The weights are those of quantizable.quantizable.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
    from transformers.pytorch_utils import Conv1D

    from quantharm.common.checkpoint_files import weight_files
    from quantharm.models.safety import refuse_unsafe
    from quantharm.quantizers import quantizable
    from quantharm.quantizers.formats.files import headers_of_file

    refuse_unsafe(folder, source["allow_pickle"], source["trust_remote_code"])
    trusted = {"trust_remote_code": source["trust_remote_code"]}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, **trusted), **trusted)
    names = quantizable.quantizable(model)
    by_input = {name: isinstance(model.get_submodule(name.rpartition(".")[0]), Conv1D) for name in names}
    rules = get_model_conversion_mapping(model)
    kinds = [[rule for rule in rules if isinstance(rule, kind)] for kind in (WeightRenaming, WeightConverter)]
    prefix, state = model.base_model_prefix, model.state_dict()
    stored = {}
    for path in weight_files(folder):
        for header in headers_of_file(path):
            name = rename_source_key(header.key, *kinds, prefix, state)[0]
            if name not in state:
                name = rename_source_key(header.key, [], [], prefix, state)[0]
            if name in names:
                stored[header.key] = name
    return stored, by_input


def in_rows(weight: "Tensor", by_input: bool) -> "Tensor":
    """A stored tensor as the matrix that is rounded, [outputs, inputs]; a stack of experts as all of their rows."""
    return weight.t() if by_input else weight.flatten(0, -2)


def noise_for(
    weight: "Tensor", name: str, settings: NoiseSettings, grid: str | None, by_input: bool = False
) -> "Tensor":
    """Noise for a stored tensor, float32 in its shape; seeded by the seed and the tensor's name."""
    import torch

    from quantharm.quantizers.rounding import half_steps

    seed = int.from_bytes(hashlib.sha256(f"{settings['seed']}/{name}".encode()).digest()[:8]) >> 1
    unit = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)) * settings["sigma"]
    if settings["relative_to"] == "absolute":
        return unit
    assert grid is not None  # config.noise.conflict refuses a method without one
    steps = half_steps(in_rows(weight, by_input), grid)
    return unit * (steps.t() if by_input else steps.reshape(weight.shape))


def write_noisy(source: SourceRecord, settings: NoiseSettings, grid: str | None, output: Path) -> NoiseAdded:
    """Writes a copy of the source's folder to `output`, with noise on its quantizable matrices.

    The noise is added in float32 and the sum rounded to the checkpoint's own type; `codes_changed` is the share of
    weights that round to another code of `grid` than before. Holds one file of weights in memory at a time. Raises
    UserError for a source without safetensors, or one that stores its matrices in a way that is not known here.
    """
    from safetensors.torch import load_file, save_file

    from quantharm.common.checkpoint_files import PICKLE_SUFFIXES, weight_files
    from quantharm.quantizers.rounding import codes

    folder = Path(source["path"])
    files = weight_files(folder)
    if not files:
        raise UserError(f"{folder} holds no *.safetensors, and noise can be added to no other format; convert it")
    stored, by_input = quantizable_matrices(folder, source)
    if set(stored.values()) != set(by_input) or not stored:
        raise UserError(
            f"{folder} stores {len(set(stored.values()))} of the {len(by_input)} matrices that a quantizer would take; "
            "noise cannot be added to an architecture that stores them otherwise; take `noise:` out of the method"
        )
    changed = weights = 0
    noise_squares = weight_squares = 0.0
    for path in folder.iterdir():
        if path.is_file() and path.suffix not in (".safetensors", *PICKLE_SUFFIXES):  # only files that are loaded
            shutil.copyfile(path, output / path.name)
    for path in files:
        tensors = load_file(path)
        for name in sorted(stored.keys() & tensors.keys()):
            weight, turned = tensors[name], by_input[stored[name]]
            noise = noise_for(weight, name, settings, grid, turned)
            noisy = (weight.float() + noise).to(weight.dtype)
            if grid:
                before, after = (codes(in_rows(matrix, turned), grid) for matrix in (weight, noisy))
                changed += int((before != after).sum())
            noise_squares += float(noise.double().square().sum())
            weight_squares += float(weight.double().square().sum())
            weights += weight.numel()
            tensors[name] = noisy
        save_file(tensors, output / path.name, metadata={"format": "pt"})
    return {
        "sigma": settings["sigma"],
        "relative_to": settings["relative_to"],
        "target": grid,
        "seed": settings["seed"],
        "matrices": len(stored),
        "weights": weights,
        "noise_rms": (noise_squares / weights) ** 0.5,
        "relative_change": (noise_squares / weight_squares) ** 0.5,
        "codes_changed": changed / weights if grid else None,
    }
