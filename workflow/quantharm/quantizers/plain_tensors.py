"""Do the tensors that a checkpoint keeps in 16 bits still stand for the original's: norms, biases, embeddings?

Methods may divide norms and biases by factors of their channels (AWQ, SmoothQuant), which then are all other ones.
Where nearly all numbers of a vector are the original's, the others are damaged; and a flipped bit of an exponent makes
a number 2^16 times as large.
"""

import torch

from quantharm.quantizers.formats.files import Headers, read_tensor
from quantharm.quantizers.quantized_layers import stored_name

LARGEST = 1e4  # times the original's largest number; factors of channels beside 1 + weight (Gemma) reach hundreds
SAME, STRONG = 0.02, 0.05  # relative difference that 16 bits explain; of the largest, below which none is judged
MOST = 0.9  # of a vector
MOVED = 0.5  # relative difference that is called damage


def faults_of_plain(model, headers: dict[str, Headers], quantized: set[str]) -> list[str]:
    """How parameters outside the modules `quantized` differ from the original's by damage, in words.

    headers: of the original's files. Parameters that are not found there, or have another shape, are not looked at.
    """
    faults = []
    for name, parameter in model.named_parameters():
        module, _, kind = name.rpartition(".")
        stored = headers.get(stored_name(model, module), {}).get(kind)
        if module in quantized or not parameter.is_floating_point() or stored is None:
            continue
        if stored.shape == tuple(parameter.shape) and (
            fault := fault_of(parameter.detach().cpu(), read_tensor(stored))
        ):
            faults.append(f"{name} {fault}")
    return faults


def fault_of(held: torch.Tensor, original: torch.Tensor) -> str | None:
    """What is wrong with a tensor of 16 or 32 bits; None where nothing is. Both of one shape."""
    largest = max(abs(float(end)) for end in torch.aminmax(original))
    # Of zeros, as an untrained bias is, any number may have been made: what an outlier's shift leaves, for instance.
    limit = LARGEST * largest if largest else torch.finfo(held.dtype).max
    if not all(abs(float(end)) <= limit for end in torch.aminmax(held)):
        return "has numbers that are infinite, no numbers, or far above the original's"
    if held.dim() != 1 or largest == 0:
        return None
    strong = original.abs() > STRONG * largest
    moved = (held[strong].float() / original[strong].float() - 1).abs()
    damaged = int((moved > MOVED).sum())
    if damaged and float((moved < SAME).float().mean()) > MOST:
        return f"has {damaged} numbers that are not the original's, as nearly all others are"
    return None
