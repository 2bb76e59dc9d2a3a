"""A third party's checkpoint that is already quantized, in any format that `quantizers.formats` reads.

Nothing is quantized here: the checkpoint is loaded as its own config says, and judged like any other cell.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantharm.common.checkpoint_files import gguf_file
from quantharm.common.records.quantization import QuantizerOutput, Settings
from quantharm.common.records.source import SourceRecord, Trust
from quantharm.quantizers import SettingsSchema

if TYPE_CHECKING:
    from quantharm.quantizers.quantized_layers import QuantizedMatrix

SETTINGS: SettingsSchema = {
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
        "description": "Kernel for an AWQ or GPTQ checkpoint (as in those quantizers); null means a portable one.",
    },
}


def quantize(
    source: SourceRecord, settings: Settings, dtype: str, device: str, gpus: int, output: Path, calibration: Path | None
) -> QuantizerOutput:
    return {"checkpoint": settings["resolved"]["path"], "resolved": settings["resolved"]}


def load(folder: Path, settings: Settings, source: SourceRecord, dtype: str, device: str, gpus: int) -> Any:
    from quantharm.models.devices import torch_dtype
    from quantharm.models.loading import load_checkpoint, load_config

    # bitsandbytes' family asks for these by name; imported here, so that a cell runs again when one is edited.
    from quantharm.quantizers import bitsandbytes_4bit, bitsandbytes_int8  # noqa: F401
    from quantharm.quantizers.experts import loaded_apart
    from quantharm.quantizers.formats import families, gguf_places
    from quantharm.quantizers.stored_states import refuse_damaged

    families.refuse_unreadable(folder, device)
    resolved = settings["resolved"]
    trusted: Trust = {"allow_pickle": resolved["allow_pickle"], "trust_remote_code": resolved["trust_remote_code"]}
    with loaded_apart(folder), families.loading(folder, settings["backend"], dtype, device) as arguments:
        if gguf_file(folder) and "path" in source and not gguf_file(Path(source["path"])):
            arguments["config"] = gguf_places.config_for(folder, load_config(source))
        model = load_checkpoint(folder, trusted, dtype, device, gpus, **arguments)
    families.finish(model, folder, torch_dtype(dtype))
    refuse_damaged(model, folder)
    compute_in(model, dtype)
    return model


def load_own(folder: Path, settings: Settings, source: SourceRecord, dtype: str, device: str, gpus: int) -> Any:
    """The model of a checkpoint that a quantizer here wrote in a stored format: read like a third party's."""
    return load(folder, {"resolved": source, "backend": settings.get("backend")}, source, dtype, device, gpus)


def compute_in(model, dtype: str) -> None:
    """Converts everything that is not quantized to `dtype`, and has 4-bit layers multiply in it.

    transformers leaves a bitsandbytes checkpoint in the dtype that it was saved in, whatever is asked for.
    """
    import torch

    from quantharm.models.devices import torch_dtype
    from quantharm.quantizers.bitsandbytes_4bit import compute_4bit_in

    saved, wanted = model.dtype, torch_dtype(dtype)
    for module in model.modules():
        for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            # A quantizer's tensors have a class of their own; another dtype is the architecture's wish.
            if type(tensor) in (torch.nn.Parameter, torch.Tensor) and tensor.dtype == saved != wanted:
                tensor.data = tensor.data.to(wanted)
    compute_4bit_in(model, dtype)
    model.config.dtype = wanted


def multiply_in_float32(module) -> None:
    from quantharm.quantizers.formats import families

    families.multiply_in_float32(module)


def inspect(name: str, module, checkpoint: Path) -> "QuantizedMatrix | None":
    from quantharm.quantizers.formats import families

    return families.inspect(name, module, checkpoint)
