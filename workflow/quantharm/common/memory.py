"""Memory of a stage's process and of the device that it uses."""

import resource
from pathlib import Path

from quantharm.common.records.parts import Memory


def forget_device_peaks(device: str) -> None:
    """Resets a GPU's peaks of memory; called after loading, so that they are of the measurement."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()
        for i in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(i)


def peak_resident_bytes() -> int:
    """The largest resident set of this program so far.

    getrusage's would be the parent's where that is larger: Linux hands it on to a program that is started.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):  # no Linux, or one that does not count it
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory_bytes(device: str) -> Memory:
    """Memory of this process: allocated, peak allocated and peak reserved on the device, peak resident on the host.

    Peaks of a device count from the last forget_device_peaks. On a CPU the process's peak resident set, loading
    included, stands for them.
    """
    host_peak = peak_resident_bytes()
    if not device.startswith("cuda"):
        return {"peak_bytes": host_peak, "host_peak_bytes": host_peak}
    import torch

    gpus = range(torch.cuda.device_count())
    return {
        "allocated_bytes": sum(torch.cuda.memory_allocated(i) for i in gpus),
        "reserved_bytes": sum(torch.cuda.max_memory_reserved(i) for i in gpus),
        "peak_bytes": sum(torch.cuda.max_memory_allocated(i) for i in gpus),
        "host_peak_bytes": host_peak,
    }
