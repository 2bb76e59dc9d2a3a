"""Host memory and time that a job requests of a cluster: by the model's size, more with each attempt.

    memory [MB]  = (2500 + MB a billion parameters × billions × bytes a weight / 2) × (1, 1.5, 2, … by attempt)
    time [min]   = (20 + minutes a billion parameters × billions) × attempt

Host memory holds the checkpoint while it is loaded, on a CPU as long as the stage runs; AWQ keeps the model there while
it goes through the layers, and a copy of the weights that it saves. The time is for a GPU that holds the model; on a
CPU it is far too short for billions of parameters. SLURM does not count the GPU's own memory.
"""

from pathlib import Path

from quantharm.common.checkpoint_files import weight_files
from quantharm.config.architectures import parameter_count, read_architecture
from quantharm.config.entries import ModelEntry

BASE_MB = 2_500  # interpreter, libraries and a CUDA context
MB_PER_BILLION = {"quantize": 4_500, "checks": 3_000, "default": 2_500}  # 16-bit weights alone take 2,000
WEIGHT_BYTES = {"float32": 4}  # of all others: 2
BASE_MINUTES = 20
MINUTES_PER_BILLION = {"quantize": 8, "generation": 4, "default": 3}
DEFAULT_BILLIONS = 7.0  # of a hub model whose entry states none
GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA's, AMD's, and what Windows lends to its Linux
SMALL_BILLIONS = 0.05  # up to here a job spends most of its time in one thread: starting, and small operations


def billion_parameters(model: ModelEntry) -> float:
    """The config's figure, or else that of a shape, or of a local folder by its size in 16 bits."""
    if model["billion_parameters"]:
        return model["billion_parameters"]
    if isinstance(model["source"], dict):
        return parameter_count(read_architecture(model["source"]["architecture"])) / 1e9
    folder = Path(model["source"])
    if folder.is_dir():
        return sum(p.stat().st_size for p in weight_files(folder)) / 2e9
    return DEFAULT_BILLIONS


def mem_mb(stage: str, model: ModelEntry, attempt: int) -> int:
    """Megabytes of host memory of a stage's job."""
    per_billion = MB_PER_BILLION.get(stage, MB_PER_BILLION["default"])
    wide = WEIGHT_BYTES.get(model["dtype"], 2) / 2
    return int((BASE_MB + per_billion * billion_parameters(model) * wide) * (attempt + 1) / 2)


def runtime_minutes(stage: str, model: ModelEntry, attempt: int) -> int:
    """Minutes of a stage's job on a GPU."""
    per_billion = MINUTES_PER_BILLION.get(stage, MINUTES_PER_BILLION["default"])
    return int(attempt * (BASE_MINUTES + per_billion * billion_parameters(model)))


def threads(model: ModelEntry, most: int) -> int:
    """Threads of a job that is not timed: `most`, or one for a small model, so that jobs share the cores."""
    return most if billion_parameters(model) > SMALL_BILLIONS else 1


def host_has_gpu() -> bool:
    """Whether this host has the driver of a GPU that PyTorch may use; to ask PyTorch itself takes seconds."""
    return any(Path(driver).exists() for driver in GPU_DRIVERS)
