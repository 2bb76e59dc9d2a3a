"""A tensor on its way from a GPU to the host, which launches more work before it waits for it.

The copy is launched at once: a copy that is asked for later waits for all the work that was launched in between.
"""

import torch


class HostCopy:
    """The numbers of a tensor; of one on a CPU a copy that is there already."""

    def __init__(self, tensor: torch.Tensor):
        self.copy = tensor.to("cpu", non_blocking=True, copy=True)  # into page-locked memory
        self.arrived = torch.cuda.Event() if tensor.is_cuda else None
        if self.arrived:
            self.arrived.record(torch.cuda.current_stream(tensor.device))  # another GPU's than the current, maybe

    def tensor(self) -> torch.Tensor:
        """Waits for the numbers."""
        if self.arrived:
            self.arrived.synchronize()
        return self.copy
