"""Whether a bitsandbytes checkpoint holds every tensor that a matrix needs, in its size.

transformers does not ask: without `nested_absmax` it takes the 8-bit codes of the scales for scales, and it reads a
truncated tensor beyond its end. Judged by the files' headers; shape and block size of 4-bit matrices are in the state
that was loaded.
"""

from pathlib import Path

from quantharm.common.checkpoint_files import listed, weight_files
from quantharm.common.errors import UserError
from quantharm.quantizers.formats.files import Headers, headers_of_files

NESTED_BLOCK = 256  # scales a second-level scale
LEVELS = 16  # of a 4-bit table
NESTED_LEVELS = 256


def faults_of_4bit(module, headers: Headers) -> list[str]:
    """Names of a Linear4bit's tensors that are missing or of another size."""
    rows, columns, state = module.out_features, module.in_features, module.weight.quant_state
    blocks = -(-rows * columns // state.blocksize)
    wanted = {"weight.absmax": blocks, "weight.quant_map": LEVELS}
    if "weight.absmax" in headers and headers["weight.absmax"].dtype == "U8":  # the scales are codes themselves
        wanted |= {"weight.nested_absmax": -(-blocks // NESTED_BLOCK), "weight.nested_quant_map": NESTED_LEVELS}
    faults = [name for name, number in wanted.items() if name not in headers or headers[name].elements != number]
    packed_bytes = headers["weight"].bytes if "weight" in headers else 0
    if packed_bytes != -(-rows * columns // 2) or tuple(state.shape) != (rows, columns):
        faults.append("weight")
    return faults


def faults_of_int8(module, headers: Headers) -> list[str]:
    """Names of a Linear8bitLt's tensors that are missing or of another size."""
    rows, columns = module.out_features, module.in_features
    wanted = {"weight": (rows, columns), "SCB": (rows,)}
    return [name for name, shape in wanted.items() if name not in headers or headers[name].shape != shape]


FAULTS = {"Linear4bit": faults_of_4bit, "Linear8bitLt": faults_of_int8}


def refuse_damaged(model, folder: Path) -> None:
    """Raises UserError naming tensors of quantized matrices that are missing or of another size.

    model: as loaded, before a forward pass (which repacks the weights on a CPU). Modules whose names differ from those
    in the files are not looked at.
    """
    modules = {name: module for name, module in model.named_modules() if type(module).__name__ in FAULTS}
    stored = headers_of_files(weight_files(folder)) if modules else {}
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
