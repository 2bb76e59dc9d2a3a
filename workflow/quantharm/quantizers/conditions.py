"""Whether a quantizer can take a model, asked before it starts: of config.json, then of the model without weights."""

from pathlib import Path

from quantharm.common.checkpoint_files import read_checkpoint_config
from quantharm.common.errors import UserError
from quantharm.common.records.quantization import Settings
from quantharm.common.records.source import SourceRecord
from quantharm.models.language_models import empty_model
from quantharm.quantizers import RefusesConfigs, RefusesModels, quantizer_named

# Quantizers that make a checkpoint and need no packages beside the evaluation environment's.
ON_THE_FLY = ("bitsandbytes_int8", "bitsandbytes_4bit", "awq", "gptq", "compressed_tensors")


def reason_against(quantizer: str, settings: Settings, source: SourceRecord) -> str | None:
    """Why a quantizer cannot take a model; None where it may try."""
    module = quantizer_named(quantizer)
    if isinstance(module, RefusesConfigs):
        reason = module.conflict(settings, read_checkpoint_config(Path(source["path"])))
        if reason:
            return reason
    if isinstance(module, RefusesModels):
        return module.unsupported(empty_model(Path(source["path"]), source), settings)
    return None


def refuse_conflict(method: str, quantizer: str, settings: Settings, source: SourceRecord) -> None:
    """Raises UserError where a method cannot be applied to a model; names the quantizers that can."""
    reason = reason_against(quantizer, settings, source)
    if reason is None:
        return
    others = [other for other in ON_THE_FLY if other != quantizer]
    able = [other for other in others if not all(reason_against(other, s, source) for s in possible_settings(other))]
    raise UserError(
        f"method `{method}` cannot be applied to model `{source['model']}`: {reason}; "
        + (f"quantizers that may: {', '.join(able)}" if able else "no other quantizer here takes it either")
    )


def possible_settings(quantizer: str) -> list[Settings]:
    """A quantizer's default settings, once for each of its group sizes."""
    declared = quantizer_named(quantizer).SETTINGS
    defaults = {key: value["default"] for key, value in declared.items() if "default" in value}
    sizes = declared.get("group_size", {}).get("enum")
    return [defaults | {"group_size": size} for size in sizes] if sizes else [defaults]
