"""The choice among PyTorch's attention kernels on a GPU.

cuDNN's kernel plans its work anew for each length of prompt: 60 to 75 ms on an H100, where a pass of 8 layers of a 7B
shape takes 15. Passes over texts of many lengths therefore run the other kernels. Passes that repeat one length, as a
captured step and a benchmark do, plan once before they are timed, and run the kernel that PyTorch chooses.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def without_plans() -> None:
    """From here on this process runs no attention kernel that plans anew for each length."""
    torch.backends.cuda.enable_cudnn_sdp(False)


@contextmanager
def of_one_length() -> Iterator[None]:
    """Within the block PyTorch chooses among all kernels; for passes that repeat one length."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
