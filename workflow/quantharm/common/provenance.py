"""The origin of a figure: versions, device, driver, commit. Part of every result record."""

import ctypes
import datetime
import functools
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from quantharm.common.commit import git_commit
from quantharm.common.records.parts import HowComputed, HowComputedOrNull, Provenance
from quantharm.common.versions import OF_SOME_METHODS, installed, versions
from quantharm.common.warm_start import FORKED

if TYPE_CHECKING:
    from quantharm.common.records.logits import StoreMetadata

# The way in which a cell computed, beside its device's name; cells are compared only when all of it is equal.
COMPUTE_KEYS = ("compute_dtype", "instruction_set", "onednn_instruction_set", "compute_capability", "tf32")
# Variables by which a user has libraries multiply in another way, which no record of instruction sets shows.
OF_PRODUCTS = (
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE",
    "OPENBLAS_CORETYPE",
    "NVIDIA_TF32_OVERRIDE",
)


@functools.cache
def cpu_name() -> str:
    """The processor's name, or its architecture where Linux gives none."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.machine()


def device_name(device: str) -> str:
    """`NVIDIA H200` or `CPU: …`; cells are compared only when this is equal."""
    if device.startswith("cuda"):
        import torch

        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        return " + ".join(sorted(names))
    return f"CPU: {cpu_name()}"


def driver_version() -> str | None:
    """Version of the GPU's driver; None without a GPU."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


@functools.cache
def onednn_instruction_set() -> str | None:
    """oneDNN's instruction set for products of 16-bit matrices, as `Intel AVX2`; None where PyTorch has no oneDNN.

    A limit set for it (ONEDNN_MAX_CPU_ISA) counts. oneDNN states it only in its verbose output of a product, which is
    caught on its way to standard output.
    """
    import torch

    if not torch.backends.mkldnn.is_available():
        return None
    two = torch.ones(2, 2)
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with tempfile.TemporaryFile() as notes:
            os.dup2(notes.fileno(), 1)
            try:
                with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
                    torch.ops.mkldnn._linear_pointwise(two, two, None, "none", [], "")
                ctypes.CDLL(None).fflush(None)
            finally:
                os.dup2(kept, 1)
            notes.seek(0)
            lines = notes.read().decode(errors="replace").splitlines()
    finally:
        os.close(kept)
    return next((line.split(",isa:", 1)[1] for line in lines if ",cpu,isa:" in line), None)


def how_computed(device: str, compute_dtype: str | None) -> HowComputed:
    """Settings that decide how products are rounded, beside the device's name: two processors of one name may differ.

    compute_dtype: the dtype in which matrices are multiplied.
    """
    import torch

    if device.startswith("cuda"):
        gpus = range(torch.cuda.device_count())
        return {
            "compute_dtype": compute_dtype,
            "compute_capability": sorted({"{}.{}".format(*torch.cuda.get_device_capability(i)) for i in gpus}),
            "tf32": torch.backends.cuda.matmul.allow_tf32,
        }
    return {
        "compute_dtype": compute_dtype,
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "onednn_instruction_set": onednn_instruction_set(),
    }


def with_nulls(record: HowComputed) -> HowComputedOrNull:
    """The COMPUTE_KEYS of a provenance or of a store's metadata; None where it lacks one."""
    return {
        "compute_dtype": record.get("compute_dtype"),
        "instruction_set": record.get("instruction_set"),
        "onednn_instruction_set": record.get("onednn_instruction_set"),
        "compute_capability": record.get("compute_capability"),
        "tf32": record.get("tf32"),
    }


def computed_differently(
    mine: Mapping[str, object], reference: Mapping[str, object]
) -> dict[str, tuple[object, object]]:
    """{key: (mine, reference's)} of device, dtype and COMPUTE_KEYS that differ in two provenances, or summary rows.

    Another engine computes in ways of its own, which its cell measures, so only device and dtype are compared.
    """
    keys = ("device", "dtype") if mine.get("engine") else ("device", "dtype", *COMPUTE_KEYS)
    return {key: (mine.get(key), reference.get(key)) for key in keys if mine.get(key) != reference.get(key)}


def filled_here(store: "StoreMetadata", device: str) -> bool:
    """Whether this process rounds like the one that filled a store: same device, libraries and instruction sets.

    store: the metadata of logits.parquet; an older store without instruction sets counts as filled elsewhere.
    """
    here = how_computed(device, store.get("compute_dtype")) | {"device": device_name(device), "versions": versions()}
    return all(store.get(key) == value for key, value in here.items())


def threads_of_process() -> int:
    """Threads that this process uses for its products, as PyTorch counts them once it is imported."""
    if "torch" in sys.modules:
        return sys.modules["torch"].get_num_threads()
    stated = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # one number for each level of nesting
    return int(stated) if stated.isdigit() else len(os.sched_getaffinity(0))


def provenance(device: str, dtype: str | None = None, compute_dtype: str | None = None) -> Provenance:
    """Versions, device, commit and command behind a record; `device` is `cpu` or `cuda`.

    dtype: that unquantized weights are loaded in. compute_dtype: in which matrices were multiplied.
    """
    record: Provenance = {
        "device": device_name(device),
        "device_type": device.split(":")[0],
        "dtype": dtype,
        **how_computed(device, compute_dtype),
        "versions": versions(),
        "git_commit": git_commit(),
        "host_cpu": cpu_name(),
        "threads": threads_of_process(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    if of_products := {name: os.environ[name] for name in OF_PRODUCTS if os.environ.get(name)}:
        record["environment"] = of_products
    if os.environ.get(FORKED):
        record["warm_start"] = True
    if of_method := installed(OF_SOME_METHODS):
        record["versions_of_method"] = of_method
    if device.startswith("cuda"):
        import torch

        record |= {"driver": driver_version(), "cuda": torch.version.cuda, "gpus": torch.cuda.device_count()}
    return record
