"""Recording what the host launches as a CUDA graph."""

import contextlib
import gc
from collections.abc import Callable

import torch


def record_graph(
    compute: Callable[[], None], warm_ups: int, beside: torch.cuda.CUDAGraph | None = None
) -> torch.cuda.CUDAGraph:
    """A graph of what `compute` launches; it is called before, since libraries choose kernels and take memory then.

    beside: a graph whose memory this one may use, since neither needs its own after it ran.
    """
    before = torch.cuda.current_stream()
    stream = torch.cuda.Stream()
    stream.wait_stream(before)
    with torch.cuda.stream(stream):
        for _ in range(warm_ups):
            compute()
    before.wait_stream(stream)
    graph, pool = torch.cuda.CUDAGraph(), beside.pool() if beside else torch.cuda.graph_pool_handle()
    collects = gc.isenabled()
    gc.disable()  # an older graph that is collected during a capture makes it fail
    try:
        with torch.cuda.graph(graph, pool=pool):
            compute()
    except BaseException:
        forget_capture(pool)
        raise
    finally:  # a capture that fails would leave the process on its own stream
        torch.cuda.set_stream(before)
        if collects:
            gc.enable()
    return graph


def forget_capture(pool: tuple[int, int]) -> None:
    """Tells PyTorch's allocator that a capture into a pool has failed, where capture_end has not.

    In PyTorch 2.11 it would be under way for good: no cached memory is freed then, so what fits is out of memory.
    Later versions end it themselves; then there is nothing to end, which is an error here.
    """
    with contextlib.suppress(RuntimeError, AttributeError):
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
