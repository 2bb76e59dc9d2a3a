"""The contents of a baseline's store, and the forward passes that fill it, one for each row of the trace."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas
import torch
from tqdm import tqdm

from quantharm.common.constants import TEXT_CATEGORY
from quantharm.common.errors import UserError
from quantharm.common.records.logits import FormOfStore, HiddenStates, StoreMetadata
from quantharm.models.devices import torch_dtype
from quantharm.scoring.forward import background_scorer, check_ids, last_hidden_states, output_head, slices_of
from quantharm.scoring.output_heads import Logits, OutputHead, narrowed, plain_head, row_slices
from quantharm.scoring.store_format import HIDDEN_STATES, LOG_PROBABILITIES, form_of
from quantharm.scoring.store_writer import StoreWriter


def target_logits(model, head, token_ids: list[int], first_target: int) -> Iterator[tuple[range, torch.Tensor]]:
    """(positions, logits [n, vocabulary] float32) of token_ids[first_target:], in slices; one forward pass."""
    vocabulary = model.get_output_embeddings().weight.shape[0]
    hidden = last_hidden_states(model, token_ids)[first_target - 1 : -1]  # [targets, width]
    for part in slices_of(len(hidden), vocabulary):
        yield range(first_target + part.start, first_target + part.stop), head(hidden[part])


def head_to_keep(model, asked: str, dtype: str) -> tuple[OutputHead | None, str | None]:
    """(the output head to store with hidden states, None), or (None, the reason to store log-probabilities instead).

    dtype: of the model's weights on disk; the head is stored in it where the model holds a wider one.
    """
    if asked == LOG_PROBABILITIES:
        return None, "the protocol asks for log-probabilities"
    head = plain_head(model)
    if head is None:
        kind = type(model.get_output_embeddings()).__name__
        return None, f"the output head is a {kind} and no plain matrix, so hidden states alone do not give its logits"
    if not all(bool(torch.isfinite(rows).all()) for tensor in head.tensors().values() for rows in row_slices(tensor)):
        return None, "the output head holds NaN or infinity"
    return narrowed(head, torch_dtype(dtype)), None


def form_of_store(model, head: OutputHead | None, reason: str | None) -> FormOfStore:
    """The metadata that describe a row of the store."""
    if head is None:
        return {"stored": "log_probabilities", "reason": reason}
    states = last_hidden_states(model, [0])
    dtype = str(states.dtype).removeprefix("torch.")
    entries: HiddenStates = {"width": states.shape[-1], "dtype": dtype}
    return {"stored": "hidden_states", "hidden_states": entries, "output_head": head.described()}


def stored_values(model, head: Logits | None, row) -> Iterator[tuple[range, torch.Tensor]]:
    """(positions, values) of a row of the trace: its hidden states at once, or its logits by `head` in slices."""
    ids = [int(i) for i in row.token_ids]
    check_ids(model, ids)
    if head is None:
        yield range(row.first_target, len(ids)), last_hidden_states(model, ids)[row.first_target - 1 : -1]
    else:
        yield from target_logits(model, head, ids, row.first_target)


def write_store(model, trace: pandas.DataFrame, path: Path, metadata: StoreMetadata) -> None:
    """Writes the store of a trace; while one prompt's positions are written, the model scores the next.

    It holds hidden states where the metadata have `hidden_states`, else log-probabilities. Raises UserError where one
    is not finite.
    """
    head = None if form_of(metadata) == HIDDEN_STATES else output_head(model)

    def prepare(row: Any, positions: range, values: torch.Tensor) -> tuple[Any, range, torch.Tensor]:
        return row, positions, values if head is None else torch.log_softmax(values, dim=-1)

    def keep(prepared: tuple[Any, range, torch.Tensor]) -> None:
        row, positions, values = prepared
        if not torch.isfinite(values).all():
            raise UserError(
                f"the baseline of {metadata['model']} gives NaN or infinite logits on {row.prompt_id}; a model like "
                "this cannot be compared with (try `dtype: bfloat16` or float32)"
            )
        targets = [int(row.token_ids[p]) for p in positions]
        store.write(row.prompt_id, row.category, positions, targets, values)

    vocabulary = model.get_output_embeddings().weight.shape[0]
    rows = tqdm(list(trace.itertuples()), desc="logits", unit="prompt", mininterval=5)
    with StoreWriter(path, vocabulary, metadata) as store:
        # Prompts and windows get the cores that they will be scored with, so that the baseline repeats itself exactly.
        for windows, group in itertools.groupby(rows, lambda row: row.category == TEXT_CATEGORY):
            with background_scorer(model.device, long_passes=windows) as in_background:
                for row in group:
                    for positions, values in stored_values(model, head, row):
                        in_background(prepare, keep, row, positions, values)
