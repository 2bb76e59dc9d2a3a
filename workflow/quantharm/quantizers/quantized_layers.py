"""Quantized matrices of a loaded model: their sizes, the sizes by formula, and the weights that they stand for."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from quantharm.common.errors import UserError, first_line
from quantharm.common.records.quantization import StoredKind
from quantharm.quantizers import quantizer_named
from quantharm.quantizers.formats.files import module_tensors


@dataclass(frozen=True)
class QuantizedMatrix:
    """One quantized linear layer of a loaded model."""

    name: str
    rows: int  # output features
    columns: int  # input features
    stored_bytes: int  # weights, scales, zero points and tables as loaded
    formula_bytes: float  # by the format's formula
    # the weights in the file, [rows, columns] float32, by arithmetic of our own; None for a layout not known here
    dequantize: Callable[[], torch.Tensor] | None
    unread: str = ""  # why there is no `dequantize`
    codes: Callable[[], torch.Tensor] | None = None  # [rows, columns] integers that the file holds
    column_order: Callable[[], torch.Tensor] | None = None  # that puts columns with one scale side by side
    # [n, columns] inputs → rounded inputs, in a format that rounds both factors (LLM.int8, W8A8, FP8)
    round_inputs: Callable[[torch.Tensor], torch.Tensor] | None = None
    stored_as: str = ""  # the file's own name of the type, where it has several (GGUF)
    held_dequantized: bool = False  # unpacked to a plain linear layer on loading


def tensor_bytes(*tensors: torch.Tensor | None) -> int:
    """Bytes of the tensors together; None counts as none."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def stored_tensors(checkpoint: Path, module: str) -> dict[str, torch.Tensor]:
    """{rest of the name: tensor} of one module's tensors in a safetensors checkpoint.

    Weights are read from disk, because kernels repack what they load, some of them at the first forward pass. Raises
    UserError where the files hold no tensor of the module.
    """
    tensors = module_tensors(checkpoint, module)
    if not tensors:
        raise UserError(
            f"{checkpoint} has no tensors of {module}, so it is not the checkpoint that was loaded; delete the "
            "cell's folder to have it made again"
        )
    return tensors


def parts_of(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The plain tensors inside a tensor subclass (torchao's codes and scales); a plain tensor itself."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    return [part for name in tensor.__tensor_flatten__()[0] for part in parts_of(getattr(tensor, name))]


def model_bytes(model) -> int:
    """Bytes of all parameters, buffers and quantization states, each storage counted once."""
    seen: dict[tuple, int] = {}
    for held in [*model.parameters(), *model.buffers()]:
        for tensor in parts_of(held):
            seen[(str(tensor.device), tensor.data_ptr())] = tensor_bytes(tensor)
    total = sum(seen.values())
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:  # bitsandbytes keeps its scales beside the parameter
            nested = getattr(state, "state2", None)  # gone once a CPU has repacked the weights
            tables = [state.absmax, state.code]
            total += tensor_bytes(*tables) + (tensor_bytes(nested.absmax, nested.code, state.offset) if nested else 0)
        scale = getattr(getattr(module, "weight", None), "SCB", None)
        total += tensor_bytes(scale) if isinstance(scale, torch.Tensor) else 0
    return total


def bias_size(layer: torch.nn.Module) -> int:
    """Numbers in a quantized layer's bias, 0 without one; a buffer in some libraries, a parameter in others."""
    bias = getattr(layer, "bias", None)
    return bias.numel() if isinstance(bias, torch.Tensor) else 0


def quantized_matrices(model, checkpoint: Path, quantizer: str) -> list[QuantizedMatrix]:
    """Every linear layer of the model that the quantizer's module recognises as its own."""
    inspect = quantizer_named(quantizer).inspect
    matrices = []
    for name, module in model.named_modules():
        if next(module.children(), None) is None:  # its weights are read by the name in the file
            matrix = inspect(stored_name(model, name), module, checkpoint)
            if matrix is not None:
                matrices.append(dataclasses.replace(matrix, name=name, dequantize=checked(matrix, checkpoint)))
    return matrices


def checked(matrix: QuantizedMatrix, checkpoint: Path) -> Callable[[], torch.Tensor] | None:
    """`dequantize` of a matrix; it raises UserError where the tensors in the file make none of its shape."""
    own = matrix.dequantize

    def dequantize() -> torch.Tensor:
        assert own is not None
        try:
            weight = own()
        except (RuntimeError, IndexError, KeyError, ValueError) as error:
            raise unfit(first_line(error)) from None
        if weight.shape != (matrix.rows, matrix.columns):
            raise unfit(f"they make {list(weight.shape)}")
        return weight

    def unfit(reason: str) -> UserError:
        return UserError(
            f"{checkpoint} is damaged, or not what its config.json says: the tensors of {matrix.name} are not those of "
            f"a matrix of {matrix.rows} × {matrix.columns} ({reason}); fetch it again"
        )

    return own and dequantize


def stored_name(model, module: str) -> str:
    """The name of a module's tensors in its checkpoint; transformers renames those of some architectures."""
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    conversions = getattr(model, "_weight_conversions", None) or []
    renamings = [c.reverse_transform() for c in reversed(conversions) if isinstance(c, WeightRenaming)]
    key, _ = rename_source_key(f"{module}.weight", renamings, [], reverse=True)
    return key.removesuffix(".weight")


def by_layer_kind(matrices: list[QuantizedMatrix]) -> dict[str, dict[str, StoredKind]]:
    """{kind of layer: {type: {matrices, weights, bits_per_weight}}}; a kind is the last part of a layer's name.

    The type is the file's own name of it (GGUF), else the codes' bits a weight, rounded.
    """
    table: dict[str, dict[str, StoredKind]] = {}
    for matrix in matrices:
        weights = matrix.rows * matrix.columns
        stored = matrix.stored_as or f"{8 * matrix.formula_bytes / weights:.2f} bits"
        row = table.setdefault(matrix.name.rpartition(".")[2], {}).setdefault(
            stored, {"matrices": 0, "weights": 0, "bits_per_weight": 0.0}
        )
        row["matrices"] += 1
        row["bits_per_weight"] = (row["bits_per_weight"] * row["weights"] + 8 * matrix.stored_bytes) / (
            row["weights"] + weights
        )
        row["weights"] += weights
    return table


def bits_per_weight(matrices: list[QuantizedMatrix]) -> tuple[float | None, float | None]:
    """(measured, by formula) bits a weight over all quantized matrices, scales and tables included; None of none."""
    weights = sum(m.rows * m.columns for m in matrices)
    if not weights:
        return None, None
    return (
        8 * sum(m.stored_bytes for m in matrices) / weights,
        8 * sum(m.formula_bytes for m in matrices) / weights,
    )
