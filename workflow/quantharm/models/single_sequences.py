"""Passes that hold one sequence, of which transformers need not ask whether they hold more."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import masking_utils

ASK = masking_utils.find_packed_sequence_indices


@contextmanager
def of_one_sequence() -> Iterator[None]:
    """Within the block transformers takes each pass for a single sequence.

    Otherwise it looks at the positions in every pass without a cache, to see whether several sequences stand one behind
    the other. The answer comes from the GPU, so its host waits until all that was launched before is computed.
    """
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = ASK
