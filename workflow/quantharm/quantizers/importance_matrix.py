"""Importance matrices: the mean square of each input channel of each matrix, as llama.cpp's `llama-imatrix` takes it.

`llama-quantize` weighs the squared error of rounding by it.
"""

import struct
from pathlib import Path
from typing import TYPE_CHECKING

from quantharm.common.records.source import SourceRecord

if TYPE_CHECKING:
    from torch import Tensor


def importance_matrix(
    source: SourceRecord, packed: list[list[int]], dtype: str, device: str, gpus: int
) -> "tuple[dict[str, Tensor], int]":
    """({GGUF's name of a matrix: mean square of each input channel, float64 [columns]}, positions seen).

    packed: token samples. One forward pass a sample, on the unquantized model.
    """
    import torch

    from quantharm.models.loading import load_checkpoint
    from quantharm.quantizers.layer_inputs import watched_inputs
    from quantharm.quantizers.quantizable import linears_to_quantize
    from quantharm.scoring.forward import last_hidden_states

    model = load_checkpoint(Path(source["path"]), source, dtype, device, gpus)
    names = tensor_names(model)
    sums: dict[str, Tensor] = {}
    seen: dict[str, int] = {}

    def add(module: str, layer_input: "Tensor") -> None:
        name, inputs = names[module], layer_input.detach().flatten(0, -2).double()
        sums[name] = sums.get(name, 0) + inputs.square().sum(0).cpu()
        seen[name] = seen.get(name, 0) + len(inputs)

    with watched_inputs(model, [name for name in linears_to_quantize(model) if name in names], add):
        for sample in packed:
            last_hidden_states(model, sample)
    torch.set_grad_enabled(False)
    return {name: total / seen[name] for name, total in sums.items()}, min(seen.values(), default=0)


def architecture_of(model_type: str) -> str:
    """GGUF's name of an architecture, without punctuation."""
    return {"mistral": "llama", "mixtral": "llama"}.get(model_type, model_type.replace("_", ""))


def tensor_names(model) -> dict[str, str]:
    """{module: GGUF's name of its weight}, by the table of the package `gguf`."""
    import gguf

    wanted = architecture_of(model.config.model_type)
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == wanted)
    table = gguf.get_tensor_name_map(architecture, model.config.num_hidden_layers)
    names = {name: table.get_name(f"{name}.weight", try_suffixes=(".weight",)) for name, _ in model.named_modules()}
    return {name: stored for name, stored in names.items() if stored}


def write_importance(matrix: "dict[str, Tensor]", path: Path) -> None:
    """Writes llama.cpp's first format of importance matrices, little-endian; its count is 1, as the values are means.

    Source: `load_imatrix` in llama.cpp's quantize.cpp.
    """
    with path.open("wb") as file:
        file.write(struct.pack("<i", len(matrix)))
        for name, values in matrix.items():
            encoded = name.encode()
            file.write(struct.pack("<i", len(encoded)) + encoded + struct.pack("<ii", 1, len(values)))
            file.write(values.float().numpy().astype("<f4").tobytes())
