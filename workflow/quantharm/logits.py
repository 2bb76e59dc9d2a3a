"""The baseline's predictions along the trace and the text, stored for the comparison with every other cell.

The trace is the baseline's own greedy continuation of each prompt, from the stage `generation`. Each sequence, prompt +
continuation or a window of the text, gets one teacher-forced forward pass: batch 1, no padding. Stored are the final
hidden states at the positions that predict the continuation, or the window's tokens; the output head lies in a file of
its own, so that the store is complete by itself. A head that is no plain matrix cannot be stored: log-probabilities are
then stored instead, as with `stored_logits: log_probabilities`. `hardware_floor` in the store's metadata is the effect
of other hardware and of 8-bit weights, by which a comparison on another machine is judged. Writes trace.parquet (the
token ids), logits.parquet (the store), the head, and logits.json.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas
import torch
from tqdm import tqdm

from quantharm.common.constants import HEAD_FILE, TEXT_CATEGORY
from quantharm.common.errors import UserError
from quantharm.common.files import read_json, read_parquet, replacing, write_json, write_parquet
from quantharm.common.records.generation import GenerationRecord
from quantharm.common.records.logits import FormOfStore, HiddenStates, LogitsRecord, StoreMetadata
from quantharm.common.stage import begin_model_stage, cell_parser, run_stage
from quantharm.common.text import (
    bos_in_front,
    context_length,
    protocol_name,
    read_text,
    sha256_of_windows,
    token_windows,
)
from quantharm.models.cell import open_cell
from quantharm.models.devices import torch_dtype
from quantharm.scoring.forward import background_scorer, check_ids, last_hidden_states, output_head, slices_of
from quantharm.scoring.hardware_floor import measure_floor
from quantharm.scoring.output_heads import OutputHead, narrowed, plain_head, write_head
from quantharm.scoring.store_format import HIDDEN_STATES, LOG_PROBABILITIES
from quantharm.scoring.store_metadata import store_metadata_of, text_id
from quantharm.scoring.store_writer import StoreWriter

WINDOWS_OF_LOG_PROBABILITIES = 2  # unless the protocol sets a number: each takes 2 bytes × tokens × vocabulary


def make_trace(generation: pandas.DataFrame, windows: list[list[int]]) -> pandas.DataFrame:
    """Columns prompt_id, category, token_ids, first_target: token_ids[first_target:] are predicted and stored."""
    rows = [
        {
            "prompt_id": row.prompt_id,
            "category": row.category,
            "token_ids": [*row.prompt_token_ids, *row.token_ids],
            "first_target": len(row.prompt_token_ids),
        }
        for row in generation.itertuples()
        if len(row.token_ids)
    ]
    rows += [
        {"prompt_id": text_id(i), "category": TEXT_CATEGORY, "token_ids": window, "first_target": 1}
        for i, window in enumerate(windows)
    ]
    return pandas.DataFrame(rows)


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
    if not all(bool(torch.isfinite(tensor).all()) for tensor in head.tensors().values()):
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


def stored_values(model, row, of_states: bool) -> Iterator[tuple[range, torch.Tensor]]:
    """(positions, values) of a row of the trace: its hidden states at once, or log-probabilities in slices."""
    ids = [int(i) for i in row.token_ids]
    check_ids(model, ids)
    if of_states:
        yield range(row.first_target, len(ids)), last_hidden_states(model, ids)[row.first_target - 1 : -1]
    else:
        yield from target_logits(model, output_head(model), ids, row.first_target)


def write_store(model, trace: pandas.DataFrame, path: Path, metadata: StoreMetadata) -> None:
    """Writes the store of a trace; while one prompt's positions are written, the model scores the next.

    It holds hidden states where the metadata have `hidden_states`, else log-probabilities. Raises UserError where one
    is not finite.
    """
    of_states = HIDDEN_STATES in metadata

    def prepare(row: Any, positions: range, values: torch.Tensor) -> tuple[Any, range, torch.Tensor]:
        return row, positions, values if of_states else torch.log_softmax(values, dim=-1)

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
    with StoreWriter(path, vocabulary, metadata) as store, background_scorer(model.device) as in_background:
        for row in tqdm(list(trace.itertuples()), desc="logits", unit="prompt", mininterval=5):
            for positions, values in stored_values(model, row, of_states):
                in_background(prepare, keep, row, positions, values)


def main() -> None:
    parser = cell_parser(__doc__)
    parser.add_argument("--generation", type=Path, required=True, help="generation.parquet of the baseline")
    parser.add_argument("--generation-record", type=Path, required=True, help="generation.json of the baseline")
    parser.add_argument("--text", type=Path, required=True, help="evaluation text")
    parser.add_argument("--window-tokens", type=int, default=2048, help="shortened to the model's context")
    parser.add_argument("--bos-every-window", default="auto", choices=["auto", "true", "false"])
    parser.add_argument("--windows", type=int, help="windows that the perplexity is taken over; all")
    parser.add_argument("--text-windows", type=int, help="windows of the text to store; those of the perplexity")
    parser.add_argument("--stored-logits", default=HIDDEN_STATES, choices=[HIDDEN_STATES, LOG_PROBABILITIES])
    parser.add_argument("--trace", type=Path, required=True, help="trace.parquet")
    parser.add_argument("--output", type=Path, required=True, help="logits.parquet; the output head lies beside it")
    parser.add_argument("--record", type=Path, required=True, help="logits.json: size, metadata, timing")
    arguments = parser.parse_args()
    timing = begin_model_stage()
    cell = open_cell(arguments.quantization, arguments.device, timing)
    record, device, tokenizer, model = cell.record, cell.device, cell.tokenizer, cell.model
    length = min(arguments.window_tokens, context_length(model.config) or arguments.window_tokens)
    bos = bos_in_front(arguments.bos_every_window, tokenizer, model.config.model_type)
    head, reason = head_to_keep(model, arguments.stored_logits, record["dtype"])
    if head is None:
        print(f"{record['model']}: log-probabilities are stored: {reason}")
    limit = arguments.windows if arguments.text_windows is None else arguments.text_windows
    if arguments.text_windows is None and head is None:
        limit = min(arguments.windows or WINDOWS_OF_LOG_PROBABILITIES, WINDOWS_OF_LOG_PROBABILITIES)
    windows = token_windows(tokenizer, read_text(arguments.text), length, bos)[: arguments.windows][:limit]
    trace = make_trace(read_parquet(arguments.generation), windows)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    identity = store_metadata_of(record, trace, device, protocol_name(length, limit, bos))
    form = form_of_store(model, head, reason)
    asked: GenerationRecord = read_json(arguments.generation_record)

    with timing.part("model"), replacing(arguments.output) as path:
        metadata: StoreMetadata = {
            **identity,
            **form,
            "text_windows": len(windows),
            "text_tokens_sha256": sha256_of_windows(windows),
            "prompt_tokens_sha256": asked["prompt_tokens_sha256"],
            "thinking": asked["thinking"],
            "template_date": asked["template_date"],
            "system_prompt": asked["system_prompt"],
            "hardware_floor": measure_floor(model, trace, TEXT_CATEGORY),
        }
        write_store(model, trace, path, metadata)
    write_head(arguments.output.with_name(HEAD_FILE), head, reason)
    write_parquet(arguments.trace, trace)
    size = arguments.output.stat().st_size
    positions = int(sum(len(ids) - first for ids, first in zip(trace["token_ids"], trace["first_target"], strict=True)))
    width = form["hidden_states"]["width"] if head else vocabulary
    store_record: LogitsRecord = {
        "model": record["model"],
        "stored": form["stored"],
        "reason": reason,
        "positions": positions,
        "vocabulary": vocabulary,
        "width": width,
        "bytes": size,
        "bytes_per_entry": size / positions / width,
        "output_head_bytes": arguments.output.with_name(HEAD_FILE).stat().st_size,
        "metadata": metadata,
        "timing": timing.record(),
        "provenance": cell.provenance(),
    }
    write_json(arguments.record, store_record)
    print(
        f"{record['model']}: {positions:,} positions × {width:,} {form['stored'].replace('_', ' ')}, "
        f"{size / 1e6:.1f} MB, {size / positions / width:.4f} bytes an entry"
    )


if __name__ == "__main__":
    run_stage(main)
