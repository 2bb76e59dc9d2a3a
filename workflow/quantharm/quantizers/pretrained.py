"""A third party's checkpoint that is already quantized (AWQ, bitsandbytes, or anything transformers can load).

Nothing is quantized here: the checkpoint is loaded as its own config says, and judged like any other cell.
"""

import contextlib
from pathlib import Path
from typing import Any

from quantharm.common.errors import UserError

SETTINGS: dict[str, Any] = {
    "source": {"type": "string", "minLength": 1, "description": "Folder or hub id of the quantized checkpoint."},
    "revision": {
        "type": ["string", "null"],
        "pattern": "^[0-9a-f]{40}$",
        "default": None,
        "description": "Commit of a hub checkpoint; required for a hub id.",
    },
    "backend": {
        "type": ["string", "null"],
        "default": None,
        "description": "Kernel for an AWQ checkpoint (as in quantizer `awq`); null lets transformers choose.",
    },
}


def quantize(source, settings, dtype, device, gpus, output: Path, calibration) -> dict[str, Any]:
    return {"checkpoint": settings["resolved"]["path"], "resolved": settings["resolved"]}


def load(folder: Path, settings, source, dtype: str, device: str, gpus: int):
    from quantharm.models.loading import load_checkpoint, read_checkpoint_config
    from quantharm.quantizers.stored_states import refuse_damaged

    stated = read_checkpoint_config(folder).get("quantization_config") or {}
    extra, kernels = {}, contextlib.nullcontext()
    if stated.get("quant_method") == "awq":
        from quantharm.quantizers.awq import backend_config, computing_in

        extra["quantization_config"] = backend_config(stated, settings["backend"], device)
        kernels = computing_in(dtype)
    elif settings["backend"]:
        raise UserError(f"`backend: {settings['backend']}` is for AWQ checkpoints, but {folder} is not one; remove it")
    resolved = settings["resolved"]
    trusted = {key: resolved[key] for key in ("trust_remote_code", "allow_pickle")}
    with kernels:
        model = load_checkpoint(folder, source | trusted, dtype, device, gpus, **extra)
    refuse_damaged(model, folder)
    compute_in(model, dtype)
    return model


def compute_in(model, dtype: str) -> None:
    """Have all that is not quantized compute in the dtype of all cells of a model, and the kernels of 4-bit layers too.

    transformers leaves a bitsandbytes checkpoint in the dtype that it was saved in, whatever is asked for.
    """
    import torch

    from quantharm.models.loading import torch_dtype
    from quantharm.quantizers.bitsandbytes_4bit import compute_4bit_in

    saved, wanted = model.dtype, torch_dtype(dtype)
    for module in model.modules():
        for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            # Of its own class is what a quantizer holds; of another dtype what the architecture wants in that one.
            if type(tensor) in (torch.nn.Parameter, torch.Tensor) and tensor.dtype == saved != wanted:
                tensor.data = tensor.data.to(wanted)
    compute_4bit_in(model, dtype)
    model.config.dtype = wanted


def compute_in_float32(model) -> None:
    """Whatever quantized it: each of these changes only the layers that it knows."""
    from quantharm.quantizers import awq, bitsandbytes_4bit

    awq.compute_in_float32(model)
    bitsandbytes_4bit.compute_in_float32(model)


def inspect(name: str, module, checkpoint: Path):
    """Whatever any quantizer here would recognise."""
    from quantharm.quantizers import awq, bitsandbytes_4bit, bitsandbytes_int8

    matrices = (q.inspect(name, module, checkpoint) for q in (awq, bitsandbytes_4bit, bitsandbytes_int8))
    return next((matrix for matrix in matrices if matrix is not None), None)
