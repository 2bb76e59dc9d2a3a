"""Whether a bitsandbytes checkpoint holds every tensor that a matrix needs, in its size.

transformers does not ask: without `nested_absmax` it takes the 8-bit codes of the scales for scales, and it reads a
truncated tensor beyond its end. Judged by the files' headers; shape and block size of 4-bit matrices are in the state
that was loaded.
"""

from collections import defaultdict
from pathlib import Path

from quantharm.common.checkpoint_files import listed, weight_files
from quantharm.common.errors import UserError

NESTED_BLOCK = 256  # scales a second-level scale
LEVELS = 16  # of a 4-bit table
NESTED_LEVELS = 256
BYTES = {"U8": 1, "I8": 1, "BF16": 2, "F16": 2, "F32": 4}

Stored = dict[str, tuple[list[int], str]]  # of one module: {rest of the tensor's name: (shape, type)}


def stored_headers(folder: Path, modules: set[str]) -> dict[str, Stored]:
    """The headers of each module's tensors in the files."""
    from quantharm.models.completeness import open_weights

    headers: dict[str, Stored] = defaultdict(dict)
    for path in weight_files(folder):
        with open_weights(path) as file:
            for key in file.keys():  # noqa: SIM118 (not a dict)
                parts = key.split(".")
                for i in range(1, len(parts)):
                    if ".".join(parts[:i]) in modules:
                        part = file.get_slice(key)
                        headers[".".join(parts[:i])][".".join(parts[i:])] = (part.get_shape(), part.get_dtype())
    return headers


def count(stored: Stored, name: str) -> int | None:
    """Number of elements of a tensor; None where it is missing."""
    if name not in stored:
        return None
    product = 1
    for length in stored[name][0]:
        product *= length
    return product


def faults_of_4bit(module, stored: Stored) -> list[str]:
    """Names of a Linear4bit's tensors that are missing or of another size."""
    rows, columns, state = module.out_features, module.in_features, module.weight.quant_state
    blocks = -(-rows * columns // state.blocksize)
    wanted = {"weight.absmax": blocks, "weight.quant_map": LEVELS}
    if stored.get("weight.absmax", ([], ""))[1] == "U8":  # the scales are codes themselves
        wanted |= {"weight.nested_absmax": -(-blocks // NESTED_BLOCK), "weight.nested_quant_map": NESTED_LEVELS}
    faults = [name for name, number in wanted.items() if count(stored, name) != number]
    packed = (count(stored, "weight") or 0) * BYTES.get(stored.get("weight", ([], ""))[1], 0)
    if packed != -(-rows * columns // 2) or tuple(state.shape) != (rows, columns):
        faults.append("weight")
    return faults


def faults_of_int8(module, stored: Stored) -> list[str]:
    """Names of a Linear8bitLt's tensors that are missing or of another size."""
    rows, columns = module.out_features, module.in_features
    wanted = {"weight": [rows, columns], "SCB": [rows]}
    return [name for name, shape in wanted.items() if name not in stored or stored[name][0] != shape]


FAULTS = {"Linear4bit": faults_of_4bit, "Linear8bitLt": faults_of_int8}


def refuse_damaged(model, folder: Path) -> None:
    """Raises UserError naming tensors of quantized matrices that are missing or of another size.

    model: as loaded, before a forward pass (which repacks the weights on a CPU). Modules whose names differ from those
    in the files are not looked at.
    """
    modules = {name: module for name, module in model.named_modules() if type(module).__name__ in FAULTS}
    stored = stored_headers(folder, set(modules)) if modules else {}
    faults = [
        f"{name}.{tensor}"
        for name, module in modules.items()
        if name in stored
        for tensor in FAULTS[type(module).__name__](module, stored[name])
    ]
    if faults:
        raise UserError(
            f"{folder} is damaged: {len(faults)} tensors of its quantized matrices are missing or of another size "
            f"({listed(faults)}); fetch it again, or delete it to have it made again"
        )
