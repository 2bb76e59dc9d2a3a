"""Leases of GPUs on a host that has several: a job computes on GPUs that no other job of this user holds.

SLURM gives each job GPUs of its own. On a host without it, `--resources gpu=4` starts four jobs that would all take the
first GPU. A GPU is held by a lock on a file, which the system releases when the process ends, however it ends.
"""

import fcntl
import os
import random
import tempfile
from pathlib import Path

HELD: list[int] = []  # file descriptors of the locks, open as long as this process lives


def seen_gpus() -> list[str]:
    """The names in CUDA_VISIBLE_DEVICES, indices or identifiers, of the GPUs that PyTorch sees."""
    import torch

    count = torch.cuda.device_count()  # by NVML, which does not start CUDA
    stated = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (stated or [str(i) for i in range(count)])[:count]


def lock_folder() -> Path:
    """A folder of this user and host; raises OSError where another user has taken its name."""
    folder = Path(tempfile.gettempdir()) / f"quantharm-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid != os.getuid():
        raise PermissionError(f"{folder} is another user's")
    return folder


def hold(path: Path) -> bool:
    """Takes the lock for as long as this process lives; whether it was free."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    HELD.append(descriptor)
    return True


def take_gpus(count: int) -> None:
    """Makes this process see `count` GPUs, free ones first; to be called before CUDA starts.

    Where there are no more than `count`, nothing changes. Where fewer are free, random others are shared: a user who
    starts more jobs than GPUs wants that.
    """
    import torch

    names = seen_gpus()
    if len(names) <= count or torch.cuda.is_initialized():
        return
    taken: list[str] = []
    try:
        folder = lock_folder()
        for name in names:
            if len(taken) < count and hold(folder / f"{name.replace('/', '_')}.lock"):
                taken.append(name)
    except OSError:  # no lock can be had here: the GPUs are shared
        pass
    busy = [name for name in names if name not in taken]
    taken += random.sample(busy, count - len(taken))
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(taken)
