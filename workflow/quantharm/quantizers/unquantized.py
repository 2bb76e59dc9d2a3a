"""The baseline: the source checkpoint itself, by a pointer; nothing is copied."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantharm.common.records.quantization import QuantizerOutput, Settings
from quantharm.common.records.source import SourceRecord
from quantharm.quantizers import SettingsSchema

if TYPE_CHECKING:
    import torch

    from quantharm.quantizers.quantized_layers import QuantizedMatrix

SETTINGS: SettingsSchema = {}


def quantize(
    source: SourceRecord, settings: Settings, dtype: str, device: str, gpus: int, output: Path, calibration: Path | None
) -> QuantizerOutput:
    return {"checkpoint": source["path"]}


def load(folder: Path, settings: Settings, source: SourceRecord, dtype: str, device: str, gpus: int) -> Any:
    from quantharm.models.loading import load_checkpoint

    return load_checkpoint(folder, source, dtype, device, gpus)


def inspect(name: str, module, checkpoint: Path) -> "QuantizedMatrix | None":
    """A layer that holds rounded weights, of which a baseline should have none: the check `method_is_real` asks.

    Recognised by how the weights are held, not by the classes of other quantizers, so that a baseline depends on no
    other method's module. It is not dequantized here, and its formula is that of a baseline, 16 bits.
    """
    if not holds_rounded_weights(module):
        return None
    from quantharm.quantizers.quantized_layers import QuantizedMatrix, tensor_bytes

    tensors = [t for t in own_tensors(module) if t is not getattr(module, "bias", None)]
    rows, columns = getattr(module, "out_features", 0), getattr(module, "in_features", 0)
    if not rows * columns:  # packed, but no linear layer: experts in one tensor, an embedding
        rows, columns = 1, max(t.numel() for t in tensors)
    return QuantizedMatrix(
        name,
        rows,
        columns,
        stored_bytes=tensor_bytes(*tensors),
        formula_bytes=2 * rows * columns,
        dequantize=None,
    )


def own_tensors(module) -> "list[torch.Tensor]":
    """Parameters and buffers of one module, without those below it."""
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


def holds_rounded_weights(module) -> bool:
    """Whether a parameter takes less than 16 bits, or a linear layer lacks a plain tensor with a float for each weight.

    Integer buffers of other modules are positions and masks. A tensor subclass (torchao's, for one) may claim a dtype
    that it does not store.
    """
    if any(not p.is_floating_point() or p.element_size() < 2 for p in module.parameters(recurse=False)):
        return True
    if not (hasattr(module, "in_features") and hasattr(module, "out_features")):
        return False
    import torch

    weight: Any = getattr(module, "weight", None)
    if type(weight) not in (torch.nn.Parameter, torch.Tensor):
        return True
    return not weight.is_floating_point() or weight.numel() < module.in_features * module.out_features
