"""AWQ (Lin et al. 2023) by autoawq: integers in groups of input channels, after scaling the salient ones up.

Quantized with autoawq, loaded with transformers (whose kernels come from gptqmodel). The kernel is named, because the
automatic choice may download or compile one.
"""

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantharm.common.errors import UserError
from quantharm.common.records.quantization import QuantizerOutput, Settings
from quantharm.common.records.source import SourceRecord
from quantharm.quantizers import SettingsSchema
from quantharm.quantizers.calibration_samples import (
    CALIBRATION_SETTINGS,
    calibration_record,
    calibration_samples,
    samples_for,
)
from quantharm.quantizers.experts import conflict_of_experts
from quantharm.quantizers.formats.awq import backend_config, computing_in, inspect, multiply_in_float32

if TYPE_CHECKING:
    from quantharm.common.checkpoint_files import CheckpointConfig

__all__ = ["SETTINGS", "calibration_samples", "inspect", "multiply_in_float32"]

SETTINGS: SettingsSchema = {
    "bits": {"enum": [4], "default": 4, "description": "Bits a weight; kernels exist for 4."},
    "group_size": {
        "enum": [32, 64, 128],
        "default": 128,
        "description": "Input channels that share a scale; divides every width of the model.",
    },
    "zero_point": {"type": "boolean", "default": True, "description": "Whether each group has a zero point."},
    **CALIBRATION_SETTINGS,
    "backend": {
        "type": ["string", "null"],
        "enum": [
            None,
            "auto",
            "torch_fused_awq",
            "torch_awq",
            "gemm",
            "gemm_triton",
            "marlin",
            "machete",
            "exllama_v2",
        ],
        "default": None,
        "description": "Kernel; null means gemm_triton on a GPU and torch_fused_awq on a CPU.",
    },
}
LINEARS_OF_A_LAYER = ("hidden_size", "intermediate_size", "n_embd", "n_inner", "d_model", "ffn_dim", "ffn_hidden_size")


def grid(settings: Settings) -> str:
    return f"int4-{settings['group_size']}"


def stated_widths(checkpoint_config: "CheckpointConfig") -> dict[str, int]:
    """The inputs of linear layers as config.json states them; `unsupported` asks the layers themselves."""
    stated = checkpoint_config.get("text_config", checkpoint_config)
    widths = {key: stated[key] for key in LINEARS_OF_A_LAYER if isinstance(stated.get(key), int)}
    heads, head = stated.get("num_attention_heads"), stated.get("head_dim")
    if isinstance(heads, int) and isinstance(head, int):
        widths["num_attention_heads × head_dim"] = heads * head
    return widths


def conflict(settings: Settings, checkpoint_config: "CheckpointConfig") -> str | None:
    group = settings["group_size"]
    if not settings["zero_point"]:
        return "`zero_point: false` has no layout that autoawq can write; leave it at true"
    for key, width in stated_widths(checkpoint_config).items():
        if width % group:
            return f"group_size {group} does not divide the model's {key} {width}; choose a group size that does"
    return conflict_of_experts(checkpoint_config, "autoawq")


def unsupported(model, settings: Settings) -> str | None:
    """Why the installed autoawq cannot quantize a model; asked of its own list and functions.

    model: on the meta device. transformers may build an architecture differently today than when autoawq learned it.
    """
    from awq import __version__ as version
    from awq.models.auto import AWQ_CAUSAL_LM_MODEL_MAP
    from awq.quantize.scale import allowed_act_fns, allowed_norms
    from awq.utils.module import exclude_layers_to_not_quantize, get_named_linears
    from torch.nn import Linear

    from quantharm.common.errors import first_line
    from quantharm.quantizers.awq_search import PACKED

    family = AWQ_CAUSAL_LM_MODEL_MAP.get(model.config.model_type)
    if family is None:
        return f"autoawq {version} has no code for models of type {model.config.model_type!r}"
    try:
        layers = family.get_model_layers(model)
        scaled = [
            part for layer in layers for part in family.get_layers_for_scaling(layer, defaultdict(type(None)), {})
        ]
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        return f"autoawq {version} does not know {type(model).__name__} as it is built today ({first_line(error)})"
    for part in scaled:
        before = type(part["prev_op"])
        if (
            not issubclass(before, (Linear, *allowed_norms, *allowed_act_fns))
            and "rmsnorm" not in before.__name__.lower()
        ):
            return f"autoawq {version} cannot scale what {type(model).__name__} computes by {before.__name__}"
    group = settings["group_size"]
    kept = getattr(family, "modules_to_not_convert", None)
    for layer in layers:
        for name, linear in exclude_layers_to_not_quantize(get_named_linears(layer), kept).items():
            if linear.in_features % group:
                return f"group_size {group} does not divide the {linear.in_features} inputs of the layers' {name}"
            if linear.out_features % PACKED:
                return f"autoawq packs {PACKED} outputs at a time, and the layers' {name} has {linear.out_features}"
    return None


def quantize(
    source: SourceRecord, settings: Settings, dtype: str, device: str, gpus: int, output: Path, calibration: Path | None
) -> QuantizerOutput:
    import warnings

    warnings.filterwarnings("ignore", category=DeprecationWarning)
    from awq import AutoAWQForCausalLM

    from quantharm.common.checkpoint_files import weight_files
    from quantharm.models.completeness import check_whole
    from quantharm.models.compute import compute_dtype, to_float32
    from quantharm.models.devices import device_map, torch_dtype
    from quantharm.models.loading import LARGEST_FILE, load_tokenizer
    from quantharm.models.safety import refuse_unsafe
    from quantharm.quantizers.awq_search import complete_for_loading, repaired_quantizer

    assert calibration is not None  # the workflow names a text for each method that calibrates
    folder, tokenizer = Path(source["path"]), load_tokenizer(source)
    packed = samples_for(source, settings, calibration)
    refuse_unsafe(folder, source["allow_pickle"], source["trust_remote_code"])
    check_whole(folder, source["trust_remote_code"])  # autoawq would not ask
    model = AutoAWQForCausalLM.from_pretrained(
        source["path"],
        torch_dtype=torch_dtype(dtype),
        trust_remote_code=source["trust_remote_code"],
        safetensors=bool(weight_files(folder)),
        device_map=device_map(device, 1) if device == "cpu" else {"": "cpu"},  # autoawq moves a layer at a time
    )
    held = {name: parameter.dtype for name, parameter in model.model.named_parameters()}
    if device == "cpu" and compute_dtype(dtype, device) == "float32":
        to_float32(model.model)  # the layers' activations and the search
    width = model.config.hidden_size
    model.quantize(
        tokenizer,
        quant_config={
            "w_bit": settings["bits"],
            "q_group_size": settings["group_size"],
            "zero_point": settings["zero_point"],
            "version": "GEMM",
        },
        calib_data=packed,
        max_calib_samples=len(packed),
        max_calib_seq_len=settings["calibration_tokens"],
        quantizer_cls=repaired_quantizer(),
    )
    # The samples that reached the quantizer are counted on the activations that it holds, not on its input.
    seen = tuple(model.quantizer.inps.shape)  # [samples, tokens, width]
    if len(seen) != 3 or seen[2] != width:
        raise UserError(f"autoawq holds activations of shape {seen}, not [samples, tokens, {width}]; pin autoawq 0.2.9")
    complete_for_loading(model)
    for name, parameter in model.model.named_parameters():  # unpacked parameters are saved in their original dtype
        parameter.data = parameter.data.to(held.get(name, torch_dtype(dtype)))
    model.model.config.use_cache = True
    model.save_quantized(str(output), shard_size=LARGEST_FILE)
    return {"calibration": calibration_record(packed, settings, calibration, seen[0], seen[0] * seen[1])}


def load(folder: Path, settings: Settings, source: SourceRecord, dtype: str, device: str, gpus: int) -> Any:
    from quantharm.common.checkpoint_files import read_checkpoint_config
    from quantharm.models.loading import load_checkpoint

    stated = read_checkpoint_config(folder)["quantization_config"]
    config = backend_config(stated, settings["backend"], device)
    with computing_in(dtype):
        return load_checkpoint(folder, source, dtype, device, gpus, quantization_config=config)
