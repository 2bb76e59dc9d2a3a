"""Which of PyTorch's attention kernels a pass runs on a GPU.

The one by cuDNN plans its work anew for each length of prompt: 60 to 75 ms on an H100, where a pass of 8 layers of a 7B
shape takes 15. Passes over texts of many lengths therefore run the other kernels. What repeats one length, as a
captured step and a benchmark do, plans once before it is timed, and runs what PyTorch chooses.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def without_plans() -> None:
    """From here on no pass of this process takes an attention kernel that plans for each length."""
    torch.backends.cuda.enable_cudnn_sdp(False)


@contextmanager
def of_one_length() -> Iterator[None]:
    """PyTorch's own choice, for passes that repeat one length."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
