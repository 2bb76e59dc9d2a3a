"""The baseline: the source checkpoint itself, by a pointer; nothing is copied."""

from pathlib import Path
from typing import Any

SETTINGS: dict[str, Any] = {}


def quantize(source, settings, dtype, device, gpus, output: Path, calibration) -> dict[str, Any]:
    return {"checkpoint": source["path"]}


def load(folder: Path, settings, source, dtype: str, device: str, gpus: int):
    from quantharm.models import load_checkpoint

    return load_checkpoint(folder, source, dtype, device, gpus)


def inspect(name: str, module, checkpoint: Path):
    """Nothing should be found in a baseline; the check `method_is_real` wants to know if something is."""
    from quantharm.quantizers.pretrained import inspect as inspect_any

    return inspect_any(name, module, checkpoint)
