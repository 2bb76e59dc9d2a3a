"""GPTQ (Frantar et al. 2023) by gptqmodel: columns are rounded one by one, later ones make up for the error so far.

The calibration tokens are counted in gptqmodel's log of each matrix. Experts are taken apart and quantized, each on the
tokens that reached it: `expert_tokens` in the record has their number, `starved_experts` the experts that too few
reached, which gptqmodel rounds to nearest.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from quantharm.common.records.quantization import QuantizerOutput, Settings
from quantharm.common.records.source import SourceRecord
from quantharm.quantizers import SettingsSchema, pretrained
from quantharm.quantizers.calibration_samples import (
    CALIBRATION_SETTINGS,
    calibration_record,
    calibration_samples,
    samples_for,
)
from quantharm.quantizers.experts import ONE_EXPERT, starved_experts, tokens_by_expert
from quantharm.quantizers.formats import families

if TYPE_CHECKING:
    from quantharm.common.checkpoint_files import CheckpointConfig

__all__ = ["SETTINGS", "calibration_samples"]

load = pretrained.load_own
inspect = families.inspect
multiply_in_float32 = families.multiply_in_float32

SETTINGS: SettingsSchema = {
    "bits": {"enum": [2, 3, 4, 8], "default": 4, "description": "Bits a weight."},
    "group_size": {
        "enum": [-1, 32, 64, 128],
        "default": 128,
        "description": "Input channels that share a scale; -1 for a whole row.",
    },
    "symmetric": {
        "type": "boolean",
        "default": True,
        "description": "Whether levels lie around zero; else zero points.",
    },
    "desc_act": {
        "type": "boolean",
        "default": False,
        "description": "Whether columns are taken in the order of their activations; groups are then not consecutive.",
    },
    "act_group_aware": {
        "type": "boolean",
        "default": False,
        "description": "Whether columns are taken in the order of their groups' activations (gptqmodel's own default).",
    },
    "damp_percent": {
        "type": "number",
        "exclusiveMinimum": 0,
        "exclusiveMaximum": 1,
        "default": 0.05,
        "description": "Of the mean of the Hessian's diagonal, added to it.",
    },
    "true_sequential": {
        "type": "boolean",
        "default": True,
        "description": "Whether a layer's matrices are calibrated on outputs of the quantized matrices before them.",
    },
    **CALIBRATION_SETTINGS,
    "backend": {
        "type": ["string", "null"],
        "default": None,
        "description": "Kernel, as gptqmodel calls it (gptq_torch, gptq_triton, gptq_marlin …); null: a portable one.",
    },
}


class LogEntry(TypedDict):
    """gptqmodel's log of a matrix that it quantized, as far as it is read here."""

    layer: int
    module: str  # within the layer
    samples: str | None  # tokens that it was calibrated on


def grid(settings: Settings) -> str | None:
    """The grid of round-to-nearest; GPTQ itself moves some weights further."""
    size = settings["group_size"]
    return f"int4-{size}" if settings["bits"] == 4 and size > 0 else None


def conflict(settings: Settings, checkpoint_config: "CheckpointConfig") -> str | None:
    if settings["desc_act"] and settings["act_group_aware"]:
        return "`desc_act` and `act_group_aware` are two orders of the same columns; set one of them to false"
    return None


def unsupported(model, settings: Settings) -> str | None:
    """Asked of a model on the meta device."""
    enough_workers()
    from gptqmodel.models.auto import MODEL_MAP

    from quantharm.quantizers.experts import take_apart
    from quantharm.quantizers.quantizable import linears_to_quantize, too_few_linears

    kind = model.config.model_type
    if kind not in MODEL_MAP:
        return f"gptqmodel has no code for models of type {kind!r}"
    take_apart(model)
    for name, linear in linears_to_quantize(model).items():
        if settings["group_size"] > 0 and linear.in_features % settings["group_size"]:
            return f"group_size {settings['group_size']} does not divide the {linear.in_features} inputs of {name}"
        if linear.in_features % 32 or linear.out_features % 32:
            return f"gptqmodel packs 32 weights at a time, and {name} is {linear.out_features} × {linear.in_features}"
    return too_few_linears(model, "gptqmodel")


def enough_workers() -> None:
    """gptqmodel starts a thread for every two cores, and stops with an error where that is fewer than two threads."""
    if (os.cpu_count() or 1) < 3:
        os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")


def quantize(
    source: SourceRecord, settings: Settings, dtype: str, device: str, gpus: int, output: Path, calibration: Path | None
) -> QuantizerOutput:
    enough_workers()
    from gptqmodel import GPTQModel, QuantizeConfig

    from quantharm.models.completeness import check_whole
    from quantharm.models.devices import torch_dtype
    from quantharm.models.safety import refuse_unsafe

    assert calibration is not None  # the workflow names a text for each method that calibrates
    folder, packed = Path(source["path"]), samples_for(source, settings, calibration)
    refuse_unsafe(folder, source["allow_pickle"], source["trust_remote_code"])
    check_whole(folder, source["trust_remote_code"])
    config = QuantizeConfig(
        bits=settings["bits"],
        group_size=settings["group_size"],
        sym=settings["symmetric"],
        desc_act=settings["desc_act"],
        act_group_aware=settings["act_group_aware"],
        damp_percent=settings["damp_percent"],
        true_sequential=settings["true_sequential"],
        offload_to_disk=False,
    )
    model = GPTQModel.load(
        str(folder),
        config,
        dtype=torch_dtype(dtype),
        device="cpu" if device == "cpu" else "cuda:0",
        trust_remote_code=source["trust_remote_code"],
    )
    samples = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in packed]
    log = model.quantize(samples, batch_size=1)
    model.save(str(output))
    tokens = tokens_reached(log)
    fewest = min(number for name, number in tokens.items() if not ONE_EXPERT.match(name))
    by_expert = tokens_by_expert(tokens)
    starved = starved_experts(by_expert, fewest)
    if starved:
        print(f"rounded to nearest, for few tokens reached them: {', '.join(starved)}")
    whole_samples = fewest // settings["calibration_tokens"]
    return {
        "calibration": calibration_record(packed, settings, calibration, whole_samples, fewest),
        **({"expert_tokens": by_expert, "starved_experts": starved} if by_expert else {}),
    }


def tokens_reached(log: dict[str, list[LogEntry]]) -> dict[str, int]:
    """{matrix, its name from the layer's number on: tokens it was calibrated on}; log: by step of the run."""
    entries = [entry for of_process in log.values() for entry in of_process]
    return {f"{entry['layer']}.{entry['module']}": int(float(entry["samples"] or 0)) for entry in entries}
