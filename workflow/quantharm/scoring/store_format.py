"""The format of the store of the baseline's predictions: Parquet, a row a position, hidden states or log-probabilities.

Hidden states (format 2) are the final ones, in the dtype of the forward pass. The output head that the metadata name
turns them into logits without loss, and a position takes 2 bytes × width. Log-probabilities (format 1) are float16 over
the whole vocabulary, renormalised in float64 when read (error floor about 5e-7 nats). A row group holds one prompt or
window of text (of log-probabilities a part of a window). Groups are written and read one at a time, so memory does not
grow with their number. The metadata name everything that the figures depend on.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow
import torch

METADATA_KEY = b"quantharm"
HIDDEN_STATES, LOG_PROBABILITIES = "hidden_states", "log_probabilities"  # columns, and words of the config
FORMATS = {LOG_PROBABILITIES: 1, HIDDEN_STATES: 2}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Entries:
    """The numbers that a store holds of a position: `width` of a dtype, in the column `name`."""

    name: str
    width: int
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        return self.width * self.dtype.itemsize


def form_of(metadata: Mapping[str, Any]) -> str:
    """Which of the two a store holds, by its metadata: HIDDEN_STATES or LOG_PROBABILITIES."""
    return LOG_PROBABILITIES if metadata.get(HIDDEN_STATES) is None else HIDDEN_STATES


def entries_of(metadata: Mapping[str, Any]) -> Entries:
    """The entries of a store, by its metadata; raises LookupError for metadata that no writer writes."""
    if form_of(metadata) == LOG_PROBABILITIES:
        return Entries(LOG_PROBABILITIES, metadata["vocabulary"], torch.float16)
    states = metadata[HIDDEN_STATES]
    return Entries(HIDDEN_STATES, states["width"], DTYPES[states["dtype"]])


def store_schema(vocabulary: int, metadata: Mapping[str, Any]) -> pyarrow.Schema:
    """Columns and metadata of a store's file."""
    entries = entries_of({**metadata, "vocabulary": vocabulary})
    columns = [
        ("prompt_id", pyarrow.string()),
        ("category", pyarrow.string()),
        ("position", pyarrow.int32()),
        ("token_id", pyarrow.int32()),
    ]
    columns += [("top_token_id", pyarrow.int32())] if entries.name == LOG_PROBABILITIES else []
    columns += [(entries.name, pyarrow.binary(entries.row_bytes))]  # little-endian
    stated = {**metadata, "format": FORMATS[entries.name], "vocabulary": vocabulary}
    return pyarrow.schema(columns, metadata={METADATA_KEY: json.dumps(stated)})
