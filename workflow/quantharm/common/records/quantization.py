"""quantization.json: a cell's checkpoint, on disk and as loaded from there."""

from typing import Any, NotRequired, TypedDict

from quantharm.common.records.parts import CellNames, Finished, Memory, WeightFile
from quantharm.common.records.source import SourceRecord

# Of a method, defaults included. Each quantizer declares its own keys and their types (SETTINGS, by which the config is
# checked), so no one type holds for all of them.
Settings = dict[str, Any]


class SampleStatistics(TypedDict):
    """Statistics of the token samples that a quantizer was calibrated on."""

    sample_tokens_min: int  # of the shortest sample
    sample_tokens_max: int  # of the longest
    duplicate_samples: int  # that repeat another one
    distinct_tokens: int  # in all samples
    distinct_share_min: float  # distinct tokens ÷ tokens, of the sample where it is lowest
    unigram_entropy_bits: float  # a token, of the samples' own frequencies


class CalibrationReached(SampleStatistics):
    """Samples and tokens that a quantizer was asked to calibrate on, and how many of them reached it."""

    file: str  # the text
    samples_asked: int
    tokens_asked: int
    samples_packed: int
    samples_reached: int
    tokens_reached: int
    tokens_sha256: str  # of the samples' token ids


class NoiseSettings(TypedDict):
    """`noise` of a method's settings: Gaussian noise on the weights before they are quantized."""

    sigma: float  # standard deviation, in the unit of `relative_to`
    relative_to: str  # half_step or absolute
    target: str | None  # the grid
    seed: int


class NoiseAdded(NoiseSettings):
    """The noise that was added."""

    matrices: int  # with noise
    weights: int  # in them
    noise_rms: float
    relative_change: float  # norm of the noise ÷ norm of the weights
    codes_changed: float | None  # share of weights that round to another code of the grid


class StoredKind(TypedDict):
    """Matrices of one kind that are stored as one type."""

    matrices: int
    weights: int
    bits_per_weight: float  # measured, scales included


class CheckpointMeasured(TypedDict):
    """The checkpoint as it was loaded back from disk; nulls where it is behind an address."""

    load_seconds: float | None
    loaded_dtype: str | None  # of unquantized weights
    weight_bytes: int | None  # parameters, buffers, scales and tables in memory
    parameters: int | None  # weights, each counted once however it is stored
    bits_per_weight: float | None  # of the quantized matrices, scales included; null where there are none
    bits_per_weight_formula: float | None  # by the format's formula
    linear_classes: list[str]  # of the quantized layers
    held_dequantized: bool  # unpacked to 16 bits on loading: weight_bytes and speed are those of 16 bits
    by_layer_kind: dict[str, dict[str, StoredKind]]  # by kind of layer (last part of its name) and type stored
    quantized_modules: list[str]
    quantized_weights: int | None  # in the quantized modules
    quantizable_weights: int | None  # in all matrices that could be quantized
    kept_modules: list[str]  # matrices left in 16 bits or more
    output_head: str | None  # name of the module


class MadeByQuantizer(TypedDict):
    """Keys that a quantizer adds to the record of its checkpoint."""

    calibration: NotRequired[CalibrationReached]  # of a method that calibrates
    expert_tokens: NotRequired[dict[str, list[int]]]  # the experts of a layer → calibration tokens that reached each
    starved_experts: NotRequired[list[str]]  # those that fewer than 0.5 % of the tokens reached
    noise: NotRequired[NoiseAdded]  # of a method with noise


class QuantizerOutput(MadeByQuantizer):
    """A quantizer's keys for the record of a checkpoint that it wrote, or that lies elsewhere."""

    checkpoint: NotRequired[str]  # folder, where it is not the one that was to be written
    resolved: NotRequired[SourceRecord]  # of that folder


class CheckpointRecord(CellNames, MadeByQuantizer):
    """Keys by which a checkpoint is loaded."""

    quantizer: str  # module in quantharm.quantizers
    settings: Settings
    settings_without_effect: NotRequired[list[str]]  # of them, those that change nothing beside the others
    dtype: str  # that every cell of the model is loaded in
    gpus: int  # that the model is spread over
    source: SourceRecord  # of the unquantized model
    checkpoint: str  # folder
    checkpoint_bytes: int | None  # on disk
    weight_files: list[WeightFile]
    config_files: NotRequired[dict[str, str]]  # {name: sha256} of the files beside them that decide the figures
    seconds: float  # of quantizing and saving
    probe_nll_nats: NotRequired[list[float]]  # -ln q of a sentence's tokens as an endpoint told them first


class QuantizationRecord(CheckpointRecord, CheckpointMeasured, Finished):
    memory: Memory  # of quantizing
