"""LLM.int8 (Dettmers et al. 2022) by bitsandbytes: int8 by row; input columns with outliers are computed in 16 bits."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantharm.common.records.quantization import QuantizerOutput, Settings
from quantharm.common.records.source import SourceRecord
from quantharm.quantizers import SettingsSchema
from quantharm.quantizers.experts import conflict_of_experts

if TYPE_CHECKING:
    from quantharm.common.checkpoint_files import CheckpointConfig
    from quantharm.quantizers.quantized_layers import QuantizedMatrix

SETTINGS: SettingsSchema = {
    "threshold": {
        "type": "number",
        "minimum": 0,
        "default": 6.0,
        "description": "Input columns with a value above this stay in 16 bits; 0 rounds all of them.",
    },
}


def grid(settings: Settings) -> str:
    return "int8"


def conflict(settings: Settings, checkpoint_config: "CheckpointConfig") -> str | None:
    return conflict_of_experts(checkpoint_config, "bitsandbytes")


def unsupported(model, settings: Settings) -> str | None:
    from quantharm.quantizers.quantizable import too_little_for_bitsandbytes

    return too_little_for_bitsandbytes(model)


def quantize(
    source: SourceRecord, settings: Settings, dtype: str, device: str, gpus: int, output: Path, calibration: Path | None
) -> QuantizerOutput:
    from transformers import BitsAndBytesConfig

    from quantharm.models.loading import LARGEST_FILE, load_checkpoint

    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=float(settings["threshold"]))
    model = load_checkpoint(Path(source["path"]), source, dtype, device, gpus, quantization_config=config)
    model.save_pretrained(output, max_shard_size=LARGEST_FILE)
    return {}


def load(folder: Path, settings: Settings, source: SourceRecord, dtype: str, device: str, gpus: int) -> Any:
    from quantharm.models.loading import load_checkpoint
    from quantharm.quantizers.stored_states import refuse_damaged

    model = load_checkpoint(folder, source, dtype, device, gpus)
    refuse_damaged(model, folder)
    return model


def inspect(name: str, module, checkpoint: Path) -> "QuantizedMatrix | None":
    """A Linear8bitLt: N bytes of weights and one float32 scale a row."""
    if type(module).__name__ != "Linear8bitLt":
        return None
    from quantharm.quantizers.formats import activations
    from quantharm.quantizers.quantized_layers import QuantizedMatrix, stored_tensors, tensor_bytes

    weight, threshold = module.weight, float(module.state.threshold)
    rows, columns = module.out_features, module.in_features
    # Before the first forward pass the state lies in the parameter, afterwards in module.state.
    codes = weight.data if weight.dtype.itemsize == 1 else module.state.CB
    scales = weight.SCB if weight.SCB is not None else module.state.SCB

    def dequantize():
        tensors = stored_tensors(checkpoint, name)
        return tensors["weight"].float() * (tensors["SCB"].float() / 127).unsqueeze(1)

    return QuantizedMatrix(
        name,
        rows,
        columns,
        stored_bytes=tensor_bytes(codes, scales),
        formula_bytes=rows * columns + 4 * rows,
        dequantize=dequantize,
        codes=lambda: stored_tensors(checkpoint, name)["weight"],
        round_inputs=lambda inputs: activations.llm_int8(inputs.half().float(), threshold),
    )
