"""The baseline's predictions along the trace and the text, stored for the comparison with every other cell.

The trace is the baseline's own greedy continuation of each prompt, from the stage `generation`. Each sequence, prompt +
continuation or a window of the text, gets one teacher-forced forward pass: batch 1, no padding. Stored are the final
hidden states at the positions that predict the continuation, or the window's tokens; the output head lies in a file of
its own, so that the store is complete by itself. A head that is no plain matrix cannot be stored: log-probabilities are
then stored instead, as with `stored_logits: log_probabilities`. `hardware_floor` in the store's metadata is the effect
of other hardware and of 8-bit weights, by which a comparison on another machine is judged. Writes trace.parquet (the
token ids), logits.parquet (the store), the head, and logits.json.
"""

from pathlib import Path

import pandas

from quantharm.common.constants import HEAD_FILE, TEXT_CATEGORY
from quantharm.common.files import read_json, read_parquet, replacing, write_json, write_parquet
from quantharm.common.records.generation import GenerationRecord
from quantharm.common.records.logits import LogitsRecord, StoreMetadata
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
from quantharm.scoring.hardware_floor import measure_floor
from quantharm.scoring.head_file import write_head
from quantharm.scoring.store_filling import form_of_store, head_to_keep, write_store
from quantharm.scoring.store_format import HIDDEN_STATES, LOG_PROBABILITIES
from quantharm.scoring.store_metadata import store_metadata_of, text_id

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
