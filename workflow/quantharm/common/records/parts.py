"""Shared by several records: provenance, memory, times, intervals, repeated measurements, files of weights."""

from typing import NotRequired, TypedDict

Interval = list[float]  # [low, high] of 95 %


class HowComputed(TypedDict):
    """Settings that decide how products are rounded, beside the device's name."""

    compute_dtype: str | None  # that matrices were multiplied in; null where no model was run
    instruction_set: NotRequired[str]  # of a CPU, as PyTorch uses it
    onednn_instruction_set: NotRequired[str | None]  # of a CPU, as oneDNN uses it
    compute_capability: NotRequired[list[str]]  # of the GPUs
    tf32: NotRequired[bool]  # whether a GPU may round float32 factors to 10 bits


class HowComputedOrNull(TypedDict):
    """HowComputed with every key; null where the device or an older record has none."""

    compute_dtype: str | None
    instruction_set: str | None
    onednn_instruction_set: str | None
    compute_capability: list[str] | None
    tf32: bool | None


class EngineRecord(TypedDict):
    """The engine that ran a checkpoint, where it was not transformers."""

    name: str  # as the config names it
    version: str | None  # the engine's own; null where a server does not say
    package: NotRequired[str]  # that it came in, with its version
    instructions: NotRequired[str]  # of the processor, that it was built for
    threads: NotRequired[int]
    kv_cache: NotRequired[dict[str, str]]  # types of keys and values
    device: NotRequired[str]  # cpu or cuda
    url: NotRequired[str]  # of an endpoint
    model: NotRequired[str]  # name under which it serves
    dialect: NotRequired[str]  # by which it tells log-probabilities
    top_tokens: NotRequired[int]  # that it shows of a position


class Provenance(HowComputed):
    """Versions, device, commit and command behind a record."""

    device: str  # `NVIDIA H200` or `CPU: …`
    device_type: str  # cpu or cuda
    dtype: str | None  # that weights are loaded in where they are not quantized, as the config says
    versions: dict[str, str]  # {package: version}, `python` among them
    versions_of_method: NotRequired[dict[str, str]]  # of packages that only some methods' jobs see
    environment: NotRequired[dict[str, str]]  # variables that are set and decide how libraries multiply
    git_commit: str | None  # of this project's checkout, with `-dirty` where files differ from it
    host_cpu: str  # its name
    threads: int  # that the process was given
    command: list[str]
    finished: str  # ISO 8601, UTC
    warm_start: NotRequired[bool]  # a fork of the warm server; absent where the process started by itself
    driver: NotRequired[str | None]  # of the GPU
    cuda: NotRequired[str | None]  # version that PyTorch was built for
    gpus: NotRequired[int]  # that the process saw
    engine: NotRequired[EngineRecord]  # where it is not transformers


class Memory(TypedDict):
    """Memory of the stage's process. On a CPU its peak resident set stands for the device's."""

    peak_bytes: int  # most that was allocated on the device
    # Largest resident set of the process; of a warm start without the pages of libraries that it never read itself.
    host_peak_bytes: int
    allocated_bytes: NotRequired[int]  # on the GPU, when it was asked
    reserved_bytes: NotRequired[int]  # most that PyTorch's allocator held of the GPU


class TimingRecord(TypedDict):
    """Seconds by part of a stage."""

    start_seconds: NotRequired[float]  # interpreter and imports
    load_seconds: NotRequired[float]  # of model and tokenizer
    model_seconds: NotRequired[float]  # forward passes, quantizing, scanning
    other_seconds: float
    total_seconds: float  # since the process began


class MeanWithInterval(TypedDict):
    mean: float
    ci95: Interval | None  # null where there is too little to say


class Repeated(TypedDict):
    """One quantity, measured several times in one process."""

    median: float
    p90: float
    ci95: Interval | None  # of the median; null for fewer than six values
    values: list[float]


class WeightFile(TypedDict):
    """A file of weights that is loaded."""

    name: str  # below the checkpoint's folder
    bytes: int
    modified_ns: int  # time of its last change; it is hashed again only when this differs
    sha256: str


class Sealed(TypedDict):
    """A record as a file of its own."""

    record_sha256: NotRequired[str]  # of the record without this key; in the file, gone once it is read


class CellNames(TypedDict):
    """The first keys of each record of a cell."""

    model: str  # name in the config
    method: str  # name in the config
    synthetic: bool  # random weights in the shape of a model: its quality figures mean nothing


class Finished(Sealed):
    """The last keys of each record of a stage."""

    timing: TimingRecord
    provenance: Provenance
