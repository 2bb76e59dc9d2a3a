"""Gaussian noise on the weights that a quantizer will round, before it does.

A defense against checkpoints that are built to change when they are quantized (Egashira et al. 2024): their weights
lie inside the boxes that round to another model's codes, and noise of the size of a box moves them out. Only the
matrices that a quantizer would take are changed: linear layers other than the output head. Each matrix has a generator
of its own, seeded by the seed and its name, so the noise does not depend on how the checkpoint is cut into files.
"""

import hashlib
import importlib
import shutil
from pathlib import Path
from typing import Any

from quantharm.common.errors import UserError

SIGMA = {"type": "number", "exclusiveMinimum": 0}
GRID_NAMES = ("int8", "nf4", "fp4", "int4-32", "int4-64", "int4-128")  # those of rounding.py, which needs torch
SCHEMA: dict[str, Any] = {
    "description": "Gaussian noise on the matrices to be quantized, before they are.",
    "type": "object",
    "additionalProperties": False,
    "required": ["sigma"],
    "properties": {
        "sigma": SIGMA | {"description": "Standard deviation, in units of `relative_to`."},
        "relative_to": {
            "enum": ["half_width", "absolute"],
            "default": "half_width",
            "description": "Half the step of each block's quantization grid, or the weights' own unit.",
        },
        "target": {
            "enum": [None, *GRID_NAMES],
            "default": None,
            "description": "The grid whose half-width is meant; null means the method's own.",
        },
        "seed": {"type": "integer", "minimum": 0, "default": 0, "description": "Of the noise."},
    },
}


def grid_of(quantizer: str, settings: dict[str, Any]) -> str | None:
    """The grid that noise is measured by: the one named in the settings' `noise`, or the quantizer's own."""
    own = getattr(importlib.import_module(f"quantharm.quantizers.{quantizer}"), "grid", None)
    return settings["noise"].get("target") or (own(settings) if own else None)


def conflict(quantizer: str, settings: dict[str, Any]) -> str | None:
    """Why a method cannot carry its `noise`, in words that follow `method … cannot`."""
    if quantizer == "pretrained":
        return "carry `noise`: its checkpoint is quantized already; quantize the original yourself"
    if grid_of(quantizer, settings) is None and settings["noise"].get("relative_to", "half_width") == "half_width":
        return f"tell its `noise` what half-width is meant: name a `target` ({', '.join(GRID_NAMES)})"
    return None


def quantizable_matrices(folder: Path, source: dict[str, Any]) -> set[str]:
    """Names of the weights of all linear layers but the output head, from the architecture alone."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from quantharm.models.loading import refuse_unsafe
    from quantharm.quantizers import quantized_layers

    refuse_unsafe(folder, source["allow_pickle"], source["trust_remote_code"])
    trusted = {"trust_remote_code": source["trust_remote_code"]}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, **trusted), **trusted)
    head = quantized_layers.head_name(model)
    return {f"{name}.weight" for name in quantized_layers.plain_linears(model) if name != head}


def noise_for(weight, name: str, settings: dict[str, Any], grid: str | None):
    """Noise of a matrix, [rows, columns] float32."""
    import torch

    from quantharm.quantizers.rounding import half_widths

    seed = int.from_bytes(hashlib.sha256(f"{settings['seed']}/{name}".encode()).digest()[:8]) >> 1
    unit = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)) * settings["sigma"]
    return unit * half_widths(weight, grid) if settings["relative_to"] == "half_width" else unit


def write_noisy(source: dict[str, Any], settings: dict[str, Any], grid: str | None, output: Path) -> dict[str, Any]:
    """A copy of the source's folder in `output` with noise on its matrices; returns what was done.

    The noise is added in float32 and the sum rounded to the checkpoint's own type; `codes_changed` is the share of
    weights that round to another code of `grid` than before. Holds one file of weights in memory at a time.
    """
    from safetensors.torch import load_file, save_file

    from quantharm.common.checkpoint_files import PICKLE_SUFFIXES, weight_files
    from quantharm.quantizers.rounding import codes

    folder = Path(source["path"])
    files = weight_files(folder)
    if not files:
        raise UserError(f"{folder} holds no *.safetensors, and noise can be added to no other format; convert it")
    wanted, seen = quantizable_matrices(folder, source), set()
    changed = weights = 0
    noise_squares = weight_squares = 0.0
    for path in folder.iterdir():
        if path.is_file() and path.suffix not in (".safetensors", *PICKLE_SUFFIXES):  # nothing that is not loaded
            shutil.copyfile(path, output / path.name)
    for path in files:
        tensors = load_file(path)
        for name in sorted(wanted & tensors.keys()):
            weight = tensors[name]
            noise = noise_for(weight, name, settings, grid)
            noisy = (weight.float() + noise).to(weight.dtype)
            if grid:
                changed += int((codes(weight, grid) != codes(noisy, grid)).sum())
            noise_squares += float(noise.double().square().sum())
            weight_squares += float(weight.double().square().sum())
            weights += weight.numel()
            tensors[name] = noisy
            seen.add(name)
        save_file(tensors, output / path.name, metadata={"format": "pt"})
    if seen != wanted or not wanted:
        raise UserError(
            f"{folder} stores {len(seen)} of the {len(wanted)} matrices that a quantizer would take; noise cannot be "
            "added to an architecture that stores them otherwise"
        )
    return {
        **settings,
        "target": grid,
        "matrices": len(seen),
        "weights": weights,
        "noise_rms": (noise_squares / weights) ** 0.5,
        "relative_change": (noise_squares / weight_squares) ** 0.5,
        "codes_changed": changed / weights if grid else None,
    }
