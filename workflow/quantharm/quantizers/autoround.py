"""AutoRound (Cheng et al. 2024) by auto-round: rounding up or down, and clipping, learned by signed gradient descent.

Each weight is rounded up or down such that its layer's output on the calibration text changes least, layer by layer.
`iterations: 0` rounds to nearest. Integers are written in GPTQ's layout, floats as compressed-tensors.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from quantharm.common.errors import UserError
from quantharm.common.records.quantization import QuantizerOutput, Settings
from quantharm.common.records.source import SourceRecord
from quantharm.quantizers import SettingsSchema, pretrained
from quantharm.quantizers.calibration_samples import (
    CALIBRATION_SETTINGS,
    calibration_record,
    calibration_samples,
    samples_for,
)
from quantharm.quantizers.experts import conflict_of_experts
from quantharm.quantizers.formats import families

if TYPE_CHECKING:
    from torch import Tensor

    from quantharm.common.checkpoint_files import CheckpointConfig

__all__ = ["SETTINGS", "calibration_samples"]

load = pretrained.load_own
inspect = families.inspect
multiply_in_float32 = families.multiply_in_float32

PACKAGES = "autoround"  # a file in envs/
FLOATS = ("NVFP4", "MXFP4", "FP8_BLOCK")
EXPORTS = {"integers": "auto_gptq", "floats": "llm_compressor"}

SETTINGS: SettingsSchema = {
    "scheme": {
        "enum": ["W2A16", "W3A16", "W4A16", "W8A16", *FLOATS],
        "default": "W4A16",
        "description": "Bits of weights and activations, as auto-round calls them.",
    },
    "group_size": {
        "enum": [32, 64, 128],
        "default": 128,
        "description": "Input channels that share a scale, in the schemes of integers.",
    },
    "symmetric": {
        "type": "boolean",
        "default": True,
        "description": "Whether levels lie around zero; else zero points.",
    },
    "iterations": {"type": "integer", "minimum": 0, "default": 200, "description": "Steps of tuning a layer."},
    "batch_size": {"type": "integer", "minimum": 1, "default": 8, "description": "Samples in each step."},
    "seed": {"type": "integer", "minimum": 0, "default": 42, "description": "Of the order of samples."},
    **CALIBRATION_SETTINGS,
    "backend": {
        "type": ["string", "null"],
        "default": None,
        "description": "Kernel of the integers, as in quantizer `gptq`.",
    },
}


def grid(settings: Settings) -> str | None:
    """The grid of round-to-nearest, None where this project has none for the scheme."""
    return f"int4-{settings['group_size']}" if settings["scheme"] == "W4A16" else None


def without_effect(settings: Settings) -> set[str]:
    idle = {"group_size", "symmetric", "backend"} if settings["scheme"] in FLOATS else set()
    return idle if settings["iterations"] else idle | {"seed"}


def conflict(settings: Settings, checkpoint_config: "CheckpointConfig") -> str | None:
    return conflict_of_experts(checkpoint_config, "auto-round, as it is used here,")


def unsupported(model, settings: Settings) -> str | None:
    """Asked of a model on the meta device."""
    from quantharm.quantizers.quantizable import linears_to_quantize, too_few_linears

    size = {"NVFP4": 16, "MXFP4": 32, "FP8_BLOCK": 128}.get(settings["scheme"], settings["group_size"])
    for name, linear in linears_to_quantize(model).items():
        if linear.in_features % size:
            return f"scheme {settings['scheme']} takes {size} inputs at a time, and {name} has {linear.in_features}"
    return too_few_linears(model, "auto-round")


def batches(packed: list[list[int]], size: int) -> "list[dict[str, Tensor]]":
    """The samples as auto-round takes them from a data loader: {input_ids, attention_mask: [size, T]}."""
    import torch

    ids = [torch.tensor(packed[i : i + size]) for i in range(0, len(packed), size)]
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids]


def quantize(
    source: SourceRecord, settings: Settings, dtype: str, device: str, gpus: int, output: Path, calibration: Path | None
) -> QuantizerOutput:
    import torch

    try:
        from auto_round import AutoRound
    except ImportError:
        raise UserError(
            "auto-round is missing; install envs/autoround.txt into the interpreter that `python:` names"
        ) from None

    from quantharm.models.loading import load_checkpoint, load_tokenizer

    assert calibration is not None  # the workflow names a text for each method that calibrates
    packed = samples_for(source, settings, calibration)
    model = load_checkpoint(Path(source["path"]), source, dtype, device, gpus)
    integers = settings["scheme"] not in FLOATS
    shape = {"group_size": settings["group_size"], "sym": settings["symmetric"]} if integers else {}
    rounding = AutoRound(
        model,
        tokenizer=load_tokenizer(source),
        scheme=settings["scheme"],
        iters=settings["iterations"],
        dataset=batches(packed, settings["batch_size"]),
        nsamples=len(packed),
        seqlen=settings["calibration_tokens"],
        batch_size=settings["batch_size"],
        seed=settings["seed"],
        device_map="cpu" if device == "cpu" else "0",
        enable_torch_compile=False,
        **shape,
    )
    with inputs_kept() as kept, torch.enable_grad():
        rounding.quantize_and_save(str(output), format=EXPORTS["integers" if integers else "floats"])
    flatten(output)
    samples, tokens = kept if kept else (0, 0)
    return {"calibration": calibration_record(packed, settings, calibration, samples, tokens)}


@contextlib.contextmanager
def inputs_kept() -> Iterator[list[int]]:
    """Gives a list that holds [samples, tokens] of the first layer's activations once auto-round has collected them."""
    from auto_round.calibration.llm import LLMCalibrator

    collecting = LLMCalibrator.calib
    kept: list[int] = []

    def collect(self, *arguments, **keywords):
        collecting(self, *arguments, **keywords)
        layers = [inputs["hidden_states"] for inputs in self.inputs.values() if isinstance(inputs, dict)]
        states = next(iter(layers), [])
        kept[:] = [sum(len(state) for state in states), sum(state.shape[0] * state.shape[1] for state in states)]

    LLMCalibrator.calib = collect
    try:
        yield kept
    finally:
        LLMCalibrator.calib = collecting


def flatten(folder: Path) -> None:
    """Moves the checkpoint up from the folder that auto-round makes inside `folder`; drops its other files."""
    for below in [path for path in folder.iterdir() if path.is_dir()]:
        for path in below.iterdir():
            if path.suffix in (".json", ".safetensors"):
                path.rename(folder / path.name)
        shutil.rmtree(below)
