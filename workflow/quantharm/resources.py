"""What a job asks a cluster for: host memory and time, from the model's size, more with each attempt.

GPU memory is not a resource that SLURM counts; the README's table gives it by model size.
"""

from pathlib import Path
from typing import Any

BASE_MB = 2_500  # interpreter and libraries
MB_PER_BILLION = {"quantize": 4_500, "checks": 3_000, "default": 2_500}  # 16-bit weights take 2,000
BASE_MINUTES = 20
MINUTES_PER_BILLION = {"quantize": 8, "generation": 8, "default": 3}
DEFAULT_BILLIONS = 7.0


def billion_parameters(model: dict[str, Any]) -> float:
    """The config's figure, or what a local folder's 16-bit weights amount to."""
    if model["billion_parameters"]:
        return model["billion_parameters"]
    folder = Path(model["source"])
    if folder.is_dir():
        return sum(p.stat().st_size for p in folder.glob("*.safetensors")) / 2e9
    return DEFAULT_BILLIONS


def mem_mb(stage: str, model: dict[str, Any], attempt: int) -> int:
    per_billion = MB_PER_BILLION.get(stage, MB_PER_BILLION["default"])
    return int(attempt * (BASE_MB + per_billion * billion_parameters(model)))


def runtime_minutes(stage: str, model: dict[str, Any], attempt: int) -> int:
    per_billion = MINUTES_PER_BILLION.get(stage, MINUTES_PER_BILLION["default"])
    return int(attempt * (BASE_MINUTES + per_billion * billion_parameters(model)))
