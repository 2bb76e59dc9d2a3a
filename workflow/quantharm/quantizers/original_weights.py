"""The matrices of the model that was quantized, read from its files one at a time, beside what became of them."""

import concurrent.futures
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from quantharm.common.ahead import results_ahead
from quantharm.common.checkpoint_files import weight_files
from quantharm.quantizers.experts import ONE_EXPERT, published_name
from quantharm.quantizers.formats.files import Headers, headers_of_files, read_part, read_tensor
from quantharm.quantizers.quantized_layers import QuantizedMatrix, stored_name

HOST_THREADS = 4  # each holds a matrix four times over, 1 GB of the largest of a 7B model


class Pair(NamedTuple):
    """A matrix of the quantized file and the original's, [rows, columns], a group's columns side by side."""

    dequantized: torch.Tensor  # float32
    original: torch.Tensor  # as it is stored: in 16 bits half as much to send to a GPU


def pairs_of(model, matrices: list[QuantizedMatrix], source: Path, device: torch.device) -> Iterator[Pair | None]:
    """The pair of each matrix, in order; None where the folder `source` holds no original, or nothing dequantizes it.

    device: which compares them. While a GPU does, threads read and dequantize the next ones, the most of the work then.
    """
    headers = headers_of_files(weight_files(source))
    by_inputs = stored_by_inputs(headers, matrices)

    def pair_of(matrix: QuantizedMatrix) -> Pair | None:
        names = (matrix.name, stored_name(model, matrix.name))
        originals = (original_weight(headers, name, matrix.rows, matrix.columns, by_inputs) for name in names)
        original = next((weight for weight in originals if weight is not None), None)
        if original is None or matrix.dequantize is None:
            return None
        dequantized = matrix.dequantize()
        if matrix.column_order is not None:
            order = matrix.column_order()
            return Pair(dequantized[:, order], original[:, order])
        return Pair(dequantized, original)

    if device.type == "cpu":
        yield from map(pair_of, matrices)
        return
    cores = torch.get_num_threads()
    threads = min(HOST_THREADS, cores)
    torch.set_num_threads(cores // threads)  # new threads take this number
    no_gradients = (torch.set_grad_enabled, (False,))  # which loading says to its own thread alone
    try:
        with concurrent.futures.ThreadPoolExecutor(threads, "", *no_gradients) as pool:
            yield from results_ahead(pool, pair_of, matrices, threads)
    finally:
        torch.set_num_threads(cores)


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
    """The original's matrix [rows, columns] of the module `name`, as stored; None where the files hold none of it.

    by_inputs: whether a square matrix is stored as [inputs, outputs] (stored_by_inputs).
    """
    stored = headers.get(name, {}).get("weight")
    if stored is None and (expert := ONE_EXPERT.match(f"{name}.")):
        return original_expert(headers, name, expert[1], int(expert[2]), rows, columns)
    if stored is None or sorted(stored.shape) != sorted((rows, columns)):
        return None
    weight = read_tensor(stored)
    turned = by_inputs if rows == columns else tuple(weight.shape) != (rows, columns)
    return weight.t() if turned else weight


def original_expert(
    headers: dict[str, Headers], name: str, experts: str, index: int, rows: int, columns: int
) -> torch.Tensor | None:
    """One expert's matrix where the original stores it under another name, or in one tensor with other experts."""
    kind = name.rpartition(".")[2]
    stored = headers.get(published_name(name), {}).get("weight")
    if stored is not None and stored.shape == (rows, columns):
        return read_tensor(stored)
    layer = headers.get(experts, {})
    joined = layer.get("gate_up_proj" if kind in ("gate_proj", "up_proj") else kind)
    if joined is None or len(joined.shape) != 3:
        return None
    weight = read_part(joined, index)
    weight = weight.t() if "gate_up_proj_bias" in layer else weight  # gpt-oss: [inputs, outputs]
    if kind != "down_proj":
        weight = weight[:rows] if kind == "gate_proj" else weight[rows:]
    return weight if weight.shape == (rows, columns) else None
