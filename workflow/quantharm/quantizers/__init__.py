"""Quantizers: one module each. A new method is one module here and one entry in config.yaml.

`Quantizer` is the Protocol of such a module; those after it are optional. ML libraries are imported
inside its functions: the workflow reads SETTINGS without them. This file imports none of the quantizers, so every room
may import it and ask for one by the name that stands in a configuration or a record.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from quantharm.common.records.quantization import QuantizerOutput, Settings
from quantharm.common.records.source import SourceRecord

if TYPE_CHECKING:
    from quantharm.common.checkpoint_files import CheckpointConfig
    from quantharm.config.validation import Schema
    from quantharm.quantizers.quantized_layers import QuantizedMatrix

SettingsSchema = dict[str, "Schema"]  # JSON Schema of a method's settings, each with a default and a description


@runtime_checkable
class Quantizer(Protocol):
    """A module that makes the checkpoints of a method, loads them back and knows its own layers.

    settings: the method's entry in the config, complete. source: the source record of the model (source.json).
    dtype: bfloat16, float16 or float32, of unquantized weights. device: cpu or cuda; gpus: how many to spread over.
    """

    SETTINGS: SettingsSchema

    def quantize(
        self,
        source: SourceRecord,
        settings: Settings,
        dtype: str,
        device: str,
        gpus: int,
        output: Path,
        calibration: Path | None,
    ) -> QuantizerOutput:
        """Writes the checkpoint folder `output`; returns keys for quantization.json.

        calibration: a text file; None for a method that does not calibrate.
        """
        ...

    def load(self, folder: Path, settings: Settings, source: SourceRecord, dtype: str, device: str, gpus: int) -> Any:
        """The model of a checkpoint folder, its weights held as they are stored."""
        ...

    def inspect(self, name: str, module: Any, checkpoint: Path) -> "QuantizedMatrix | None":
        """The record of one of its own linear layers, None for any other module; name: the one in the file."""
        ...


@runtime_checkable
class RoundsToGrid(Protocol):
    """A quantizer whose codes lie on a grid of quantharm.quantizers.rounding, so that noise has a unit."""

    def grid(self, settings: Settings) -> str | None:
        """The grid of a method with these settings; None where they round to none of them."""
        ...


@runtime_checkable
class RefusesConfigs(Protocol):
    """A quantizer that cannot take some models, as their config.json shows before any job."""

    def conflict(self, settings: Settings, checkpoint_config: "CheckpointConfig") -> str | None:
        """Why a model cannot be quantized this way; None where it may."""
        ...


@runtime_checkable
class RefusesModels(Protocol):
    """A quantizer that cannot take some models, as their modules show before weights are loaded."""

    def unsupported(self, model: Any, settings: Settings) -> str | None:
        """Why a model, on the meta device, cannot be quantized this way; None where it may."""
        ...


@runtime_checkable
class Calibrates(Protocol):
    """A quantizer that reads a calibration text; `calibration` in its record counts the samples that reached it."""

    def calibration_samples(
        self, tokenizer: Any, text: str, settings: Settings, model_type: str | None = None
    ) -> list[list[int]]:
        """The token ids of its samples, drawn again from the text for the check `calibration`."""
        ...


@runtime_checkable
class LeavesSettings(Protocol):
    """A quantizer some of whose settings count only beside certain others; their descriptions say so."""

    def without_effect(self, settings: Settings) -> set[str]:
        """The settings that change nothing, given the others."""
        ...


@runtime_checkable
class NeedsPackages(Protocol):
    """A quantizer whose packages lie in a folder that only its cells see, not in the evaluation environment."""

    PACKAGES: str  # a file in envs/, without .txt, that pins every package that it needs


@runtime_checkable
class MultipliesInFloat32(Protocol):
    """A quantizer some of whose layers do not multiply in float32 on a CPU once their 16-bit tensors are cast to it."""

    def multiply_in_float32(self, module: Any) -> None:
        """Has one of its layers multiply in float32; leaves any other module alone."""


def quantizer_named(name: str) -> Quantizer:
    """The module of a quantizer; raises ModuleNotFoundError where there is none of that name."""
    return cast(Quantizer, importlib.import_module(f"quantharm.quantizers.{name}"))
