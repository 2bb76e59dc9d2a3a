"""Meters of a device: copy bandwidth, peak memory, waiting for processors, energy, and time computing."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from quantharm.common.records.generation import CopyBandwidth

COPY_BYTES = {"cuda": 4 * 2**30, "cpu": 2**28}  # far more than any cache holds
COPY_REPETITIONS = 10


def synchronise(device: torch.device) -> None:
    """Waits until the device has finished its work, so that a clock read afterwards includes it."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def copy_bandwidth(device: torch.device) -> CopyBandwidth:
    """The rate of a copy within the device's memory: bytes read plus bytes written, a second; median of ten."""
    size = COPY_BYTES[device.type]
    if device.type == "cuda":
        size = min(size, torch.cuda.mem_get_info(device)[0] // 4)
    # PyTorch's own generator of a GPU refuses to go on after a capture that failed.
    generator = torch.Generator(device).manual_seed(0)
    source = torch.randint(256, (size,), generator=generator, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    rates = []
    for _ in range(2 + COPY_REPETITIONS):
        synchronise(device)
        begin = time.perf_counter()
        target.copy_(source)
        synchronise(device)
        rates.append(2 * size / (time.perf_counter() - begin))
    del source, target
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return {"copy_bytes": size, "copy_bytes_per_second": median(rates[2:])}


class PeakMemory:
    """The most memory that this process held since this object was made: allocated on its GPUs, resident on a CPU."""

    def __init__(self, device: torch.device):
        self.device = device
        self.known = True
        if device.type == "cuda":
            for i in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(i)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the present size (proc(5))
        except OSError:
            self.known = False

    def bytes(self) -> int | None:
        """The peak; None where the system does not count it."""
        if self.device.type == "cuda":
            return sum(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count()))
        if not self.known:
            return None
        lines = Path("/proc/self/status").read_text().splitlines()
        return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)


class ProcessorWait:
    """The time that this process waits for processors in use by others, since this object was made.

    Linux counts for each thread how long it ran, and how long it was ready and did not run (schedstat).
    """

    def __init__(self) -> None:
        self.before = thread_times()

    def share(self) -> float | None:
        """Time waited / (time run + time waited), of the threads still alive; None where the system does not count."""
        after = thread_times()
        ran, waited = (sum(t[i] - self.before.get(thread, (0, 0))[i] for thread, t in after.items()) for i in (0, 1))
        return waited / (ran + waited) if ran + waited else None


def thread_times() -> dict[str, tuple[int, int]]:
    """{thread: (nanoseconds that it ran, nanoseconds that it waited for a processor)} of this process."""
    times = {}
    for path in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, ValueError):  # a thread may have ended meanwhile
            ran, waited, _ = path.read_text().split()
            times[path.parent.name] = (int(ran), int(waited))
    return times


class EnergyMeter:
    """The energy counters of the GPUs in use, through NVML; `reason` says why there are none."""

    def __init__(self, device: torch.device):
        self.handles: list[Any] = []  # NVML's, one a GPU
        self.reason: str | None = None
        if device.type != "cuda":
            self.reason = "measured on GPUs only"
            return
        try:
            import pynvml

            self.library = pynvml
            pynvml.nvmlInit()
            uuids = [torch.cuda.get_device_properties(i).uuid for i in range(torch.cuda.device_count())]
            self.handles = [pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}") for uuid in uuids]
            self.joules()
        except ImportError:
            self.reason = "the package nvidia-ml-py is not installed"
        except Exception as error:  # NVML's own classes: no counter, no permission, no driver library
            self.reason = f"NVML has no energy counter here ({error})"

    def joules(self) -> float | None:
        """Joules since the driver was loaded, of all GPUs of this process; None where there are no counters."""
        if self.reason is not None:
            return None
        return sum(self.library.nvmlDeviceGetTotalEnergyConsumption(h) for h in self.handles) / 1000  # from mJ


def kernel_seconds(function: Callable[[], object]) -> float:
    """Seconds that the GPU's kernels and copies took while function() ran, by PyTorch's profiler."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        function()
        torch.cuda.synchronize()
    return sum(event.self_device_time_total for event in profile.key_averages()) / 1e6
