"""Loading of checkpoints and tokenizers: offline, from the files that a record names, once models.safety allows them.

A *source* record (source.json) says where a model lies and what it is; a *quantization* record (quantization.json),
which checkpoint was made of it. Every stage gets its model through `load_cell`.
"""

import logging
import warnings
from pathlib import Path

from quantharm import engines
from quantharm.common.checkpoint_files import weight_files
from quantharm.common.errors import UserError, first_line, remedy_for
from quantharm.common.files import read_json
from quantharm.common.records.quantization import CheckpointRecord, QuantizationRecord
from quantharm.common.records.source import Located, Trust
from quantharm.models.completeness import check_whole, load_whole
from quantharm.models.devices import device_map, torch_dtype
from quantharm.models.safety import refuse_unsafe, verify_config_files, verify_weights
from quantharm.quantizers import MultipliesInFloat32, quantizer_named

LARGEST_FILE = "5GB"  # of weights that are written; several files are hashed and read at once
SYNTHETIC_MARK = "synthetic.json"  # in a checkpoint folder: its weights are random numbers


def quiet() -> None:
    """Silences progress bars and repeated notices of the libraries, which would bury a stage's own log."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in ("bitsandbytes", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="MatMul8bitLt")
    warnings.filterwarnings("ignore", category=DeprecationWarning)


def place_of(source: Located) -> str:
    """The path of a source record's model; raises UserError where it is gone: transformers would ask a hub for it."""
    if not Path(source["path"]).exists():
        raise UserError(f"{source['path']}, where the model was, does not exist; restore it, or fetch the model again")
    return source["path"]


def load_tokenizer(source: Located):
    """The tokenizer of a source record: the model's own, never a quantized checkpoint's copy."""
    from transformers import AutoTokenizer

    quiet()
    place = place_of(source)
    try:
        return AutoTokenizer.from_pretrained(
            place, trust_remote_code=source["trust_remote_code"], local_files_only=True
        )
    except (OSError, ValueError, ImportError) as error:
        remedy = remedy_for(error, "fetch the model again")
        raise UserError(f"the tokenizer in {source['path']} cannot be loaded ({first_line(error)}); {remedy}") from None


def load_config(source: Located):
    """transformers' configuration of a source record's model."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(
        place_of(source), trust_remote_code=source["trust_remote_code"], local_files_only=True
    )


def load_checkpoint(folder: Path, source: Trust, dtype: str, device: str, gpus: int, **extra):
    """A causal language model from a folder, in eval mode and without gradients; every quantizer loads through it.

    source: permissions of its record; dtype: of the weights that are not quantized; gpus: that the model is spread
    over; extra: further arguments of from_pretrained. Raises UserError unless the folder is safe to load and holds the
    whole model and nothing else.
    """
    import torch

    quiet()
    refuse_unsafe(folder, source["allow_pickle"], source["trust_remote_code"])
    if "quantization_config" in extra:  # while it quantizes, transformers takes matrices of any shape
        check_whole(folder, source["trust_remote_code"])
    model = load_whole(
        folder,
        dtype=torch_dtype(dtype),
        device_map=device_map(device, gpus),
        use_safetensors=bool(weight_files(folder)),  # pickle only where there is nothing else
        trust_remote_code=source["trust_remote_code"],
        **extra,
    )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    torch.set_grad_enabled(False)
    return model.eval()


def verify_config(record: CheckpointRecord) -> None:
    """Raises UserError where the configuration or tokenizer, of checkpoint or model, is not the recorded one."""
    source = record["source"]
    verify_config_files(Path(place_of(source)), source.get("config_files"), source["trust_remote_code"])
    trusted = record["settings"].get("resolved", source)["trust_remote_code"]
    verify_config_files(Path(record["checkpoint"]), record.get("config_files"), trusted)


def load_as_stored(record: CheckpointRecord, device: str):
    """The model of a quantization record, from the files on disk, once they are known to be those recorded.

    Its weights are held in the dtype that the record states; sizes are measured on this model.
    """
    folder = Path(record["checkpoint"])
    verify_weights(folder, record["weight_files"])
    quantizer = quantizer_named(record["quantizer"])
    return quantizer.load(folder, record["settings"], record["source"], record["dtype"], device, record["gpus"])


def load_cell(record: CheckpointRecord, device: str, compute_dtype: str | None = None):
    """The model of a cell as its engine runs it; every figure of the cell is measured on it.

    compute_dtype: of matrix products, where it is not to be this device's choice.
    """
    if engines.other_engine(record["settings"]):
        return engines.open_cell(record, device)
    model = load_in_transformers(record, device, compute_dtype)
    if record["settings"].get("kv_cache"):
        engines.serve_from_cache(model, record["settings"])
    return model


def load_in_transformers(record: CheckpointRecord, device: str, compute_dtype: str | None = None):
    """load_as_stored, with matrices multiplied in the dtype that set_compute_dtype chooses."""
    from quantharm.models import attention

    attention.without_plans()
    model = load_as_stored(record, device)
    set_compute_dtype(model, record["quantizer"], record["dtype"], device, compute_dtype)
    return model


def set_compute_dtype(model, quantizer: str, dtype: str, device: str, wanted: str | None = None) -> None:
    """Makes a loaded model multiply in `wanted` (a store's dtype, say), or else in a dtype that this device is fast in.

    Only float32 has to be arranged for: otherwise a model computes in the dtype that it was loaded in.
    """
    from quantharm.models import compute

    if device == "cpu" and (wanted or compute.compute_dtype(dtype, device)) == "float32":
        own = quantizer_named(quantizer)
        if isinstance(own, MultipliesInFloat32):
            for module in model.modules():
                own.multiply_in_float32(module)
        compute.to_float32(model)


def read_quantization(path: Path) -> QuantizationRecord:
    """A quantization.json; raises UserError for another file."""
    record = read_json(path)
    for key in ("model", "method", "quantizer", "checkpoint", "source", "gpus"):
        if not isinstance(record, dict) or key not in record:
            raise UserError(f"{path} is not a quantization record (no `{key}`); delete it and run the command again")
    return record
