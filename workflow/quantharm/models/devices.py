"""The device that a stage computes on: its choice, the spread of a model over GPUs, dtypes, memory given back."""

import gc
from typing import Any

from quantharm.common.errors import UserError


def choose_device(wanted: str, gpus: int) -> str:
    """`cpu` or `cuda`; wanted: one of these, or `auto` for a GPU where there is one.

    From here on this process sees no more than `gpus` GPUs. Raises UserError where `cuda` is wanted and none is there.
    """
    if wanted == "cpu":
        return "cpu"
    import torch

    from quantharm.models.gpu_lease import take_gpus

    take_gpus(gpus)
    if torch.cuda.is_available():
        return "cuda"
    if wanted == "cuda":
        raise UserError(
            "`device: cuda` is asked for but PyTorch sees no GPU here; check nvidia-smi and CUDA_VISIBLE_DEVICES, "
            "or set `device: cpu` (or auto) in the config"
        )
    return "cpu"


def device_map(device: str, gpus: int) -> Any:
    """transformers' device_map: one device, or the layers spread evenly over `gpus` GPUs.

    Raises UserError where this process sees fewer.
    """
    if device == "cpu":
        return {"": "cpu"}
    import torch

    if torch.cuda.device_count() < gpus:
        raise UserError(f"`gpus: {gpus}` is asked for but PyTorch sees {torch.cuda.device_count()}; lower `gpus:`")
    return {"": 0} if gpus == 1 else "balanced"


def dtype_of(model) -> str:
    """`bfloat16`, `float16` or `float32`: the dtype of a loaded model, whatever was asked for."""
    return str(model.dtype).removeprefix("torch.")


def torch_dtype(name: str):
    """torch's dtype of that name."""
    import torch

    return getattr(torch, name)


def free_memory(device: str) -> None:
    """Frees the memory of what was just deleted; else what comes next would have to fit into the rest of a GPU."""
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()
