"""The kernels: does a quantized layer multiply its inputs by the weights that its file holds?

Not academic: on an H200, one of gptqmodel 7.4.0's five AWQ kernels is the fastest and gives logits 1.15 nats away from
the other four.
"""

import math
from typing import Any

import torch

from quantharm.common.records.checks import CheckRecord
from quantharm.forensics.checks.outcome import outcome
from quantharm.models.compute import multiplies_bytes_exactly
from quantharm.quantizers.layer_inputs import watched_inputs
from quantharm.quantizers.quantized_layers import QuantizedMatrix
from quantharm.scoring.forward import last_hidden_states

KERNEL_LIMIT = 0.02  # relative difference of a layer's output
KERNEL_MATRICES = 8
KERNEL_TOKENS = 64


def check_kernel(model: Any, matrices: list[QuantizedMatrix], tokens: list[int]) -> CheckRecord:
    """Quantized layers of each kind, spread over the depth, on the activations of real text."""
    if not matrices:
        return outcome("kernel", None, None, KERNEL_LIMIT, "nothing is quantized in this cell")
    unread = next((matrix.unread for matrix in matrices if matrix.dequantize is None), None)
    if unread is not None:
        return outcome("kernel", None, None, KERNEL_LIMIT, unread)
    chosen = choose_matrices(reached_by_text(model, matrices, tokens))
    if not chosen:
        return outcome("kernel", None, None, KERNEL_LIMIT, "text reaches no quantized matrix of this cell")
    inputs = inputs_of(model, chosen, tokens)
    differences = {m.name: kernel_difference(m, model.get_submodule(m.name), inputs[m.name]) for m in chosen}
    worst = max(differences, key=lambda name: differences[name] if math.isfinite(differences[name]) else math.inf)
    kernel = type(model.get_submodule(worst)).__name__
    passed = differences[worst] <= KERNEL_LIMIT
    explanation = (
        f"largest relative difference of {kernel} from its dequantized weights on {len(chosen)} matrices, in {worst}"
    )
    rounds_inputs = any(matrix.round_inputs is not None for matrix in chosen)
    if not passed and rounds_inputs and model.device.type == "cpu" and not multiplies_bytes_exactly():
        explanation += "; PyTorch multiplies 8-bit integers wrongly on this processor (no VNNI instructions)"
    return outcome("kernel", passed, differences[worst], KERNEL_LIMIT, explanation)


def reached_by_text(model: Any, matrices: list[QuantizedMatrix], tokens: list[int]) -> list[QuantizedMatrix]:
    """The matrices that tokens pass through; an expert, or a model's image encoder, may get none."""
    reached: set[str] = set()
    with watched_inputs(model, [matrix.name for matrix in matrices], lambda name, _: reached.add(name)):
        last_hidden_states(model, tokens)
    return [matrix for matrix in matrices if matrix.name in reached]


def choose_matrices(matrices: list[QuantizedMatrix]) -> list[QuantizedMatrix]:
    """At most KERNEL_MATRICES: one of each kind (last part of the name), from the first layer to the last."""
    kinds: dict[str, list[QuantizedMatrix]] = {}
    for matrix in matrices:
        kinds.setdefault(matrix.name.rsplit(".", 1)[-1], []).append(matrix)
    walk = [group[i * (len(group) - 1) // max(1, len(kinds) - 1)] for i, group in enumerate(kinds.values())]
    return walk[:KERNEL_MATRICES]


def inputs_of(model: Any, matrices: list[QuantizedMatrix], tokens: list[int]) -> dict[str, torch.Tensor]:
    """{matrix: its layer's inputs [n, columns] in one forward pass over the tokens}."""
    inputs: dict[str, torch.Tensor] = {}

    def keep(name: str, layer_input: torch.Tensor) -> None:
        inputs[name] = layer_input.detach().flatten(0, -2).clone()

    with watched_inputs(model, [matrix.name for matrix in matrices], keep):
        last_hidden_states(model, tokens)
    return inputs


def kernel_difference(matrix: QuantizedMatrix, module: torch.nn.Module, inputs: torch.Tensor) -> float:
    """Relative difference of a layer's output from (dequantized weight × the same input); inputs: [n, columns].

    The larger one of all rows at once and of one row alone, as decoding uses other kernels than prefill.
    """
    assert matrix.dequantize is not None
    weight = matrix.dequantize().to(inputs.device)
    both = [difference_from(weight, matrix, module, rows) for rows in (inputs, inputs[:1])]
    return float(torch.tensor(both).max())  # NaN if either is


def difference_from(
    weight: torch.Tensor, matrix: QuantizedMatrix, module: torch.nn.Module, inputs: torch.Tensor
) -> float:
    """kernel_difference of one call; weight: [rows, columns] float32."""
    measured = module(inputs.unsqueeze(0))[0]  # [batch, tokens, columns], as the model calls it
    if module.bias is not None:
        measured = measured - module.bias.to(measured)
    multiplied = matrix.round_inputs(inputs.cpu()).to(inputs.device) if matrix.round_inputs else inputs
    return relative_difference(measured, multiplied.float() @ weight.t())


def relative_difference(measured: torch.Tensor, expected: torch.Tensor) -> float:
    """‖measured - expected‖ ÷ ‖expected‖, of tensors of one shape."""
    return float((measured.float() - expected).norm() / expected.norm().clamp_min(1e-30))
