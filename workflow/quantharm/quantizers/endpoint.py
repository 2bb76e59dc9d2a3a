"""A model that somebody serves (`engine: openai`): nothing is quantized here, and no weight is seen."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantharm.common.records.quantization import QuantizerOutput, Settings
from quantharm.common.records.source import SourceRecord
from quantharm.quantizers import SettingsSchema

if TYPE_CHECKING:
    from quantharm.quantizers.quantized_layers import QuantizedMatrix

SETTINGS: SettingsSchema = {
    "url": {"type": "string", "minLength": 8, "description": "http:// or https://, host, port; with or without /v1."},
    "model": {"type": "string", "minLength": 1, "description": "Name under which the server has the model."},
    "api_key_variable": {
        "type": ["string", "null"],
        "default": None,
        "description": "Environment variable that holds the key; the key itself stands in no file.",
    },
    "top_tokens": {
        "type": "integer",
        "minimum": 1,
        "maximum": 1000,
        "default": 20,
        "description": "Log-probabilities asked for of a position; fewer where the server shows fewer.",
    },
    "concurrency": {
        "type": "integer",
        "minimum": 1,
        "maximum": 256,
        "default": 4,
        "description": "Sequences asked for at a time.",
    },
    "timeout_seconds": {"type": "number", "exclusiveMinimum": 0, "default": 300, "description": "Of one answer."},
    "retries": {
        "type": "integer",
        "minimum": 0,
        "default": 5,
        "description": "How often a server that is busy or away is asked again, after 0.5, 1, 2, … seconds.",
    },
}


def quantize(
    source: SourceRecord, settings: Settings, dtype: str, device: str, gpus: int, output: Path, calibration: Path | None
) -> QuantizerOutput:
    return {}


def load(folder: Path, settings: Settings, source: SourceRecord, dtype: str, device: str, gpus: int) -> Any:
    raise NotImplementedError("an endpoint's weights are not here")


def inspect(name: str, module, checkpoint: Path) -> "QuantizedMatrix | None":
    return None
