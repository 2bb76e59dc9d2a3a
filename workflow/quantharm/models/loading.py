"""Loading of checkpoints and tokenizers: offline, safetensors only, no code from a checkpoint unless it is allowed.

A *source* record (source.json) says where a checkpoint lies and what it holds; a *quantization* record
(quantization.json) says what was made of it. Every stage gets its model through `load_cell`.
"""

import gc
import logging
import warnings
from pathlib import Path
from typing import Any

from quantharm import engines
from quantharm.common.checkpoint_files import (
    GGUF,
    PICKLE_SUFFIXES,
    folder_of,
    gguf_file,
    pickled_weight_files,
    read_checkpoint_config,
    refuse_other_kinds,
    weight_files,
)
from quantharm.common.errors import UserError, first_line
from quantharm.common.files import read_json, sha256_of_files
from quantharm.common.records.parts import WeightFile
from quantharm.common.records.quantization import CheckpointRecord, QuantizationRecord
from quantharm.common.records.source import Located, Trust
from quantharm.models.completeness import check_whole, load_whole
from quantharm.quantizers import ComputesInFloat32, quantizer_named

LARGEST_FILE = "5GB"  # of weights that are written; several files are hashed and read at once
SYNTHETIC_MARK = "synthetic.json"  # in a checkpoint folder: its weights are random numbers


def quiet() -> None:
    """Progress bars and per-call notices of the libraries, which would bury a stage's own log."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in ("bitsandbytes", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="MatMul8bitLt")
    warnings.filterwarnings("ignore", category=DeprecationWarning)


def choose_device(wanted: str, gpus: int) -> str:
    """`cpu` or `cuda` for `auto`, `cpu` or `cuda`; raises UserError where a GPU is asked for and none is there.

    On a GPU, this process sees no more than `gpus` of them from here on.
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
    """transformers' device_map: one device, or the layers spread evenly over `gpus` GPUs."""
    if device == "cpu":
        return {"": "cpu"}
    import torch

    if torch.cuda.device_count() < gpus:
        raise UserError(f"`gpus: {gpus}` is asked for but PyTorch sees {torch.cuda.device_count()}; lower `gpus:`")
    return {"": 0} if gpus == 1 else "balanced"


def dtype_of(model) -> str:
    """`bfloat16`, `float16` or `float32`: what a loaded model computes in, whatever was asked for."""
    return str(model.dtype).removeprefix("torch.")


def torch_dtype(name: str):
    import torch

    return getattr(torch, name)


def is_known_architecture(model_type: str | None) -> bool:
    """Whether transformers itself can build such a model, so that a checkpoint's own code is not needed."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return model_type in CONFIG_MAPPING_NAMES


def refuse_unsafe(folder: Path, allow_pickle: bool, trust_remote_code: bool) -> None:
    """Raises UserError for pickled weights or code in a checkpoint that its config entry does not allow.

    And before that for a folder that is no whole model.
    """
    if gguf_file(folder):
        return  # numbers and words; what it may not be taken for is asked where it is fetched
    if Path(folder).is_dir():
        refuse_other_kinds(folder)
    settings = read_checkpoint_config(folder)
    if settings.get("auto_map") and not trust_remote_code and not is_known_architecture(settings.get("model_type")):
        raise UserError(
            f"{folder} asks to run its own Python code (auto_map in config.json), which could do anything on this "
            "machine; if you trust it set `trust_remote_code: true` in its config entry"
        )
    if weight_files(folder):
        return
    pickled = sorted(p.name for p in Path(folder).iterdir() if p.suffix in PICKLE_SUFFIXES)
    if not pickled:
        raise UserError(f"{folder} holds no weights (*.safetensors); fetch the model again or name another folder")
    if allow_pickle and not pickled_weight_files(folder):
        raise UserError(f"{folder} holds pickled files ({pickled[0]}) but no pytorch_model.bin, which would be loaded")
    if not allow_pickle:
        raise UserError(
            f"{folder} holds its weights only as pickle ({pickled[0]}), which runs code when it is loaded; use a "
            "safetensors version, or set `allow_pickle: true` in its config entry if you trust it"
        )


def hash_weights(folder: Path, allow_pickle: bool = False) -> list[WeightFile]:
    """[{name, bytes, modified_ns, sha256}] of the weight files."""
    files = weight_files(folder)
    if not files and allow_pickle:
        files = pickled_weight_files(folder)
    hashes = sha256_of_files(files)
    return [
        {"name": p.name, "bytes": p.stat().st_size, "modified_ns": p.stat().st_mtime_ns, "sha256": hashes[p]}
        for p in files
    ]


def verify_weights(folder: Path, files: list[WeightFile], in_full: bool = False) -> None:
    """Raises UserError when a weight file is not the recorded one; hashes it only if its size or time differs.

    Also when others than the recorded ones would be loaded. in_full hashes every file, whatever its time says.
    """
    folder = folder_of(folder)
    doubtful: dict[Path, str] = {}  # with the sha256 that was recorded
    for file in files:
        path = Path(folder) / file["name"]
        if not path.is_file():
            raise UserError(f"{path} is missing; delete {Path(folder).parent} and run the same command again")
        if in_full or (path.stat().st_size, path.stat().st_mtime_ns) != (file["bytes"], file["modified_ns"]):
            doubtful[path] = file["sha256"]
    recorded = {file["name"] for file in files}
    in_gguf = any(name.lower().endswith(GGUF) for name in recorded)  # beside which lie others of one model
    added = sorted({p.name for p in weight_files(folder)} - recorded) if not in_gguf else []
    if added:
        raise UserError(
            f"{Path(folder) / added[0]} was added after the weights were recorded, and would be loaded; take it out, "
            "or delete the cell's folder to make it again"
        )
    for path, sha256 in sha256_of_files(list(doubtful)).items():
        if sha256 != doubtful[path]:
            raise UserError(
                f"{path} changed after it was recorded (its sha256 is no longer {doubtful[path][:12]}…), so results "
                "would not describe one checkpoint; restore it, or delete the cell's folder to make it again"
            )


def load_tokenizer(source: Located):
    """The tokenizer of a source record; always the source's own, never a quantized checkpoint's copy."""
    from transformers import AutoTokenizer

    quiet()
    try:
        return AutoTokenizer.from_pretrained(
            source["path"], trust_remote_code=source["trust_remote_code"], local_files_only=True
        )
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"the tokenizer in {source['path']} cannot be loaded: {first_line(error)}") from None


def load_config(source: Located):
    """transformers' configuration of a source record's model."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(
        source["path"], trust_remote_code=source["trust_remote_code"], local_files_only=True
    )


def load_checkpoint(folder: Path, source: Trust, dtype: str, device: str, gpus: int, **extra):
    """A causal language model from a folder, in eval mode; every quantizer's `load` comes through here.

    Raises UserError unless the folder is safe to load and holds the whole model and nothing else.
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


def load_as_stored(record: CheckpointRecord, device: str):
    """The model of a quantization record, from what is on disk, after checking that it is what was recorded.

    Its weights are held in the dtype that the record states: what sizes are measured on.
    """
    folder = Path(record["checkpoint"])
    verify_weights(folder, record["weight_files"])
    quantizer = quantizer_named(record["quantizer"])
    return quantizer.load(folder, record["settings"], record["source"], record["dtype"], device, record["gpus"])


def load_cell(record: CheckpointRecord, device: str, compute_dtype: str | None = None):
    """The model of a cell as its engine runs it: what every figure of the cell is measured on."""
    if engines.other_engine(record["settings"]):
        return engines.open_cell(record, device)
    model = load_in_transformers(record, device, compute_dtype)
    if record["settings"].get("kv_cache"):
        engines.serve_from_cache(model, record["settings"])
    return model


def load_in_transformers(record: CheckpointRecord, device: str, compute_dtype: str | None = None):
    """load_as_stored, with its matrices multiplied as set_compute_dtype says."""
    from quantharm.models import attention

    attention.without_plans()
    model = load_as_stored(record, device)
    set_compute_dtype(model, record["quantizer"], record["dtype"], device, compute_dtype)
    return model


def set_compute_dtype(model, quantizer: str, dtype: str, device: str, wanted: str | None = None) -> None:
    """Have a loaded model multiply in `wanted` (a store's, say), or else in what this device multiplies fast.

    Only float32 has to be arranged for: otherwise a model computes in the dtype that it was loaded in.
    """
    from quantharm.models import compute

    if device == "cpu" and (wanted or compute.compute_dtype(dtype, device)) == "float32":
        module = quantizer_named(quantizer)
        arrange = module.compute_in_float32 if isinstance(module, ComputesInFloat32) else compute.to_float32
        arrange(model)


def read_quantization(path: Path) -> QuantizationRecord:
    record = read_json(path)
    for key in ("model", "method", "quantizer", "checkpoint", "source", "gpus"):
        if not isinstance(record, dict) or key not in record:
            raise UserError(f"{path} is not a quantization record (no `{key}`); delete it and run the command again")
    return record


def free_memory(device: str) -> None:
    """Give back what a model held that was just deleted; else the next one would be fitted into the rest of a GPU."""
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()
