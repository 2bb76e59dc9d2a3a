"""The matrices of the model that was quantized, read from its files one at a time."""

import torch

from quantharm.quantizers.experts import ONE_EXPERT, published_name
from quantharm.quantizers.formats.files import Headers, read_part, read_tensor
from quantharm.quantizers.quantized_layers import QuantizedMatrix


def stored_by_inputs(headers: dict[str, Headers], matrices: list[QuantizedMatrix]) -> bool:
    """Whether the original stores matrices as [inputs, outputs], as GPT-2's Conv1D does.

    Seen on the matrices that are not square.
    """
    stored = (
        (headers.get(matrix.name, {}).get("weight"), matrix) for matrix in matrices if matrix.rows != matrix.columns
    )
    return any(weight is not None and tuple(weight.shape) == (m.columns, m.rows) for weight, m in stored)


def original_weight(
    headers: dict[str, Headers], name: str, rows: int, columns: int, by_inputs: bool = False
) -> torch.Tensor | None:
    """The original's matrix [rows, columns] float32 of the module `name`; None where the files hold none of it.

    by_inputs: whether a square matrix is stored as [inputs, outputs] (stored_by_inputs).
    """
    stored = headers.get(name, {}).get("weight")
    if stored is None and (expert := ONE_EXPERT.match(f"{name}.")):
        return original_expert(headers, name, expert[1], int(expert[2]), rows, columns)
    if stored is None or sorted(stored.shape) != sorted((rows, columns)):
        return None
    weight = read_tensor(stored).float()
    turned = by_inputs if rows == columns else tuple(weight.shape) != (rows, columns)
    return weight.t() if turned else weight


def original_expert(
    headers: dict[str, Headers], name: str, experts: str, index: int, rows: int, columns: int
) -> torch.Tensor | None:
    """One expert's matrix where the original stores it under another name, or in one tensor with other experts."""
    kind = name.rpartition(".")[2]
    stored = headers.get(published_name(name), {}).get("weight")
    if stored is not None and stored.shape == (rows, columns):
        return read_tensor(stored).float()
    layer = headers.get(experts, {})
    joined = layer.get("gate_up_proj" if kind in ("gate_proj", "up_proj") else kind)
    if joined is None or len(joined.shape) != 3:
        return None
    weight = read_part(joined, index).float()
    weight = weight.t() if "gate_up_proj_bias" in layer else weight  # gpt-oss: [inputs, outputs]
    if kind != "down_proj":
        weight = weight[:rows] if kind == "gate_proj" else weight[rows:]
    return weight if weight.shape == (rows, columns) else None
