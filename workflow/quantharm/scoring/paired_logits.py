"""The logits of the baseline and of a method at the same positions, in the order of the baseline's store.

The baseline's come from its store, the method's from one forward pass a prompt or window.
"""

import collections
import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy
import pandas
import torch
from tqdm import tqdm

from quantharm.common.constants import HEAD_FILE, TEXT_CATEGORY
from quantharm.common.errors import UserError
from quantharm.scoring.forward import (
    GIVEN_TOKENS,
    check_ids,
    known_tokens,
    last_hidden_states,
    output_head,
    slices_of,
)
from quantharm.scoring.head_file import read_head
from quantharm.scoring.output_heads import Logits, device_of_head, is_same, logits_of, on, plain_head
from quantharm.scoring.shared_tokens import shared_vocabulary
from quantharm.scoring.store_format import HIDDEN_STATES, LOG_PROBABILITIES, form_of
from quantharm.scoring.stored_logits import Positions, Wanted, read_store, store_metadata

# Threads that read the store beside a GPU, which scores log-probabilities (64 kB a position of a 7B model) faster than
# one thread reads and verifies them. One reads hidden states (8 kB) faster than they are needed; more would only hold
# up the thread that launches the passes.
READERS_FOR_GPU = {LOG_PROBABILITIES: 4, HIDDEN_STATES: 1}
AHEAD = 2**14  # positions whose states may wait for the baseline's head: 134 MB of a 7B model
Result = TypeVar("Result")
States = tuple[Positions, torch.Tensor]  # a row group, and the model's hidden states [n, width] that predict its tokens


@dataclass(frozen=True)
class Piece:
    """Positions of one row group of the store, with both models' logits there."""

    group: Positions
    part: slice
    baseline: torch.Tensor  # [n, vocabulary] float32 logits or float16 log-probabilities
    logits: torch.Tensor  # [n, vocabulary] float32
    known: torch.Tensor | None = None  # [n, m] ids whose logits are the method's; None: all are

    def of_group(self, name: str) -> numpy.ndarray:
        """Of each position: a column of the group, or the same word n times."""
        value = getattr(self.group, name)
        return numpy.repeat(value, len(self.logits)) if isinstance(value, str) else value[self.part]


def sequences_of(trace: pandas.DataFrame) -> dict[str, list[int]]:
    """{prompt_id: all its token ids}."""
    return {row.prompt_id: list(map(int, row.token_ids)) for row in trace.itertuples()}


def on_gpu(model) -> bool:
    """Whether passes are launched, rather than computed, by their thread."""
    return model.device.type == "cuda"


def read_ahead(model, store: Path, wanted: Wanted | None = None) -> Iterator[Positions]:
    """The store's row groups, read by as many threads as the model's device wants beside its forward passes."""
    readers = READERS_FOR_GPU[form_of(store_metadata(store))] if on_gpu(model) else 1
    return read_store(store, readers, on_gpu(model), wanted)


def baseline_head(model, head: Logits, store: Path) -> tuple[Logits | None, Future[None] | None]:
    """(from stored hidden states to the baseline's logits, the comparison of the head's sha256, still going on).

    Both are None for a store of log-probabilities. Most methods leave the output head as it is: where it is the
    baseline's own, `head` (the model's) does for both, so that memory holds one and equal states give equal logits to
    the last bit.
    """
    description = store_metadata(store).get("output_head")
    if description is None:
        return None, None
    (baseline, compared), own = read_head(store.with_name(HEAD_FILE), description), plain_head(model)
    if own is not None and is_same(own, baseline):
        return head, compared
    return logits_of(on(baseline, device_of_head(model))), compared


def pieces_of(
    model,
    store: Path,
    sequences: dict[str, list[int]],
    wanted: Wanted | None = None,
    progress: bool = True,
    stage: str = "divergence",
    first_targets: Mapping[str, int] | None = None,
) -> Iterator[Piece]:
    """The store's positions in order, with the model's logits from one forward pass a prompt or window.

    sequences: prompt_id → all its token ids; wanted: which row groups, all. stage: what the bar of progress says.
    first_targets: prompt_id → the first position that is stored, where it is not 1.

    Raises UserError unless the store has all positions of all sequences, once, and these tokens, and its head is the
    one that it names; the last may be found after the first pieces were given.
    """
    head = output_head(model)
    begun = begin(model, baseline_head, model, head, store)
    vocabulary = shared_vocabulary(model, store)
    # Closed by hand: an error holds this frame, and so would keep the store's files and the bar of progress open.
    with contextlib.closing(states_of(model, store, sequences, wanted, progress, stage, first_targets or {})) as passes:
        for group, states in ahead_until(begun, passes):
            from_states, compared = begun.result()
            if compared is not None and compared.done():
                compared.result()
            for part in slices_of(len(states), vocabulary):
                logits = head(states[part])[:, :vocabulary]
                baseline = baseline_entries(group, part, from_states, logits.device)[:, :vocabulary]
                yield Piece(group, part, baseline, logits, known_tokens(model, states[part]))
        _, compared = begun.result()
        if compared is not None:
            compared.result()


def begin(model, function: Callable[..., Result], *arguments) -> Future[Result]:
    """function(*arguments): on a GPU beside the passes, which its host only launches; else now."""
    if not on_gpu(model):
        done: Future[Result] = Future()
        done.set_result(function(*arguments))
        return done
    pool = ThreadPoolExecutor(1, "", torch.set_grad_enabled, (False,))  # which loading says to its own thread alone
    begun = pool.submit(function, *arguments)
    pool.shutdown(wait=False)
    return begun


def ahead_until(begun: Future, passes: Iterator[States]) -> Iterator[States]:
    """The passes in order. Until `begun` is done, passes over some AHEAD positions are launched before one is given."""
    launched: collections.deque[States] = collections.deque()
    for each in passes:
        launched.append(each)
        if begun.done() or sum(len(states) for _, states in launched) > AHEAD:
            while launched:
                yield launched.popleft()
    yield from launched


def states_of(
    model,
    store: Path,
    sequences: dict[str, list[int]],
    wanted: Wanted | None,
    progress: bool,
    stage: str,
    first_targets: Mapping[str, int],
) -> Generator[States, None, None]:
    """Each row group of the store, with the model's hidden states that predict its tokens; as pieces_of."""
    current, hidden = None, torch.empty(0)
    firsts = dict.fromkeys(sequences, 1) | dict(first_targets)
    following = dict(firsts)  # the position of each that comes next
    with tqdm(total=len(sequences), desc=stage, unit="prompt", mininterval=5, disable=not progress) as bar:
        for group in read_ahead(model, store, wanted):
            if group.prompt_id not in sequences:
                raise UserError(f"the log-prob store {store} has {group.prompt_id}, which the trace lacks; delete both")
            ids = sequences[group.prompt_id]
            if group.prompt_id != current:
                check_ids(model, ids)
                given = GIVEN_TOKENS if group.category == TEXT_CATEGORY else int(group.position[0])  # its prompt
                hidden, current = last_hidden_states(model, ids, given), group.prompt_id  # [T, width]
                bar.update()
            first, last = int(group.position[0]), int(group.position[-1])
            if first != following[current]:
                raise UserError(
                    f"the log-prob store {store} has position {first} of {current} where {following[current]} follows; "
                    "delete it and run the same command again"
                )
            following[current] = last + 1
            if ids[first : last + 1] != group.token_id.tolist():
                raise UserError(f"the log-prob store {store} has other tokens than the trace in {current}; delete both")
            yield group, hidden[first - 1 : last]
    for prompt_id, position in following.items():
        if position < len(sequences[prompt_id]):
            missing = "" if position == firsts[prompt_id] else f" from position {position} on"
            raise UserError(
                f"the log-prob store {store} lacks {prompt_id}{missing}; delete it and run the same command again"
            )


def baseline_entries(group: Positions, part: slice, from_states: Logits | None, device: torch.device) -> torch.Tensor:
    """The baseline's logits or log-probabilities at some positions of a row group, on the method's device."""
    if group.log_probabilities is not None:
        return group.log_probabilities[part].to(device, non_blocking=True)
    assert group.hidden_states is not None, "a row group holds one of the two"
    assert from_states is not None, "a store of hidden states names its output head"
    return from_states(group.hidden_states[part].to(device, non_blocking=True))


def first_targets_of(trace: pandas.DataFrame) -> dict[str, int]:
    """{prompt_id: the position of its first token that is predicted and stored}."""
    return {row.prompt_id: int(row.first_target) for row in trace.itertuples()}
