"""The key `noise` of a method: Gaussian noise on the weights before they are rounded, added by quantizers/noise.py."""

from typing import TYPE_CHECKING

from quantharm.common.records.quantization import Settings
from quantharm.quantizers import RoundsToGrid, quantizer_named

if TYPE_CHECKING:
    from quantharm.config.validation import Schema

SIGMA: "Schema" = {"type": "number", "exclusiveMinimum": 0}
GRID_NAMES = ("int8", "nf4", "fp4", "int4-32", "int4-64", "int4-128")  # of quantizers/rounding.py, which needs torch
SCHEMA: "Schema" = {
    "description": "Gaussian noise on the matrices to be quantized, before they are.",
    "type": "object",
    "additionalProperties": False,
    "required": ["sigma"],
    "properties": {
        "sigma": SIGMA | {"description": "Standard deviation, in units of `relative_to`."},
        "relative_to": {
            "enum": ["half_step", "absolute", "half_width"],
            "default": "half_step",
            "description": "Half a step of each block's grid (formerly called half_width), or the weights' unit.",
        },
        "target": {
            "enum": [None, *GRID_NAMES],
            "default": None,
            "description": "The grid whose steps are meant; null means the method's own.",
        },
        "seed": {"type": "integer", "minimum": 0, "default": 0, "description": "Of the noise."},
    },
}


def grid_of(quantizer: str, settings: Settings) -> str | None:
    """The grid whose half step is the unit of noise: that named in the settings' `noise`, or the quantizer's own."""
    module = quantizer_named(quantizer)
    return settings["noise"].get("target") or (module.grid(settings) if isinstance(module, RoundsToGrid) else None)


def conflict(quantizer: str, settings: Settings) -> str | None:
    """Why a method cannot carry its `noise`, in words that follow `method … cannot`."""
    if quantizer == "pretrained":
        return "carry `noise`: its checkpoint is quantized already; quantize the original yourself"
    if grid_of(quantizer, settings) is None and settings["noise"].get("relative_to") != "absolute":
        return f"tell its `noise` whose half step is meant: name a `target` ({', '.join(GRID_NAMES)})"
    return None


def one_spelling(method: Settings) -> Settings:
    """The entry with `relative_to: half_step` where it has the older word for it."""
    if method.get("noise", {}).get("relative_to") != "half_width":
        return method
    return method | {"noise": method["noise"] | {"relative_to": "half_step"}}
