"""The baseline's log-probability store over the trace and the first windows of the evaluation text.

The trace is the baseline's own greedy continuation of each prompt, as the generation stage recorded it. One
teacher-forced forward pass over prompt + continuation, batch 1, no padding; only the positions that predict
continuation tokens are stored. The store's metadata also say what other hardware and weights of 8 bits would change
(`hardware_floor`), by which a comparison with the store is judged elsewhere. Writes trace.parquet (the token ids),
logits.parquet (the store) and logits.json.
"""

from collections.abc import Iterator
from pathlib import Path

import pandas
import torch
from tqdm import tqdm

from quantharm.common.constants import TEXT_CATEGORY
from quantharm.common.errors import UserError
from quantharm.common.files import read_json, read_parquet, replacing, write_json, write_parquet
from quantharm.common.records.generation import GenerationRecord
from quantharm.common.records.logits import LogitsRecord, StoreMetadata
from quantharm.common.stage import begin_model_stage, cell_parser, run_stage
from quantharm.common.text import (
    bos_in_front,
    context_length,
    protocol_name,
    read_text,
    token_windows,
)
from quantharm.models.cell import open_cell
from quantharm.scoring.forward import background_scorer, check_ids, last_hidden_states, output_head, slices_of
from quantharm.scoring.hardware_floor import measure_floor
from quantharm.scoring.store_metadata import store_metadata_of
from quantharm.scoring.stored_logits import StoreWriter


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
        {"prompt_id": f"text-{i:02d}", "category": TEXT_CATEGORY, "token_ids": window, "first_target": 1}
        for i, window in enumerate(windows, 1)
    ]
    return pandas.DataFrame(rows)


def target_logits(model, head, token_ids: list[int], first_target: int) -> Iterator[tuple[range, torch.Tensor]]:
    """(positions, logits [n, vocabulary] float32) of token_ids[first_target:], in slices; one forward pass."""
    vocabulary = model.get_output_embeddings().weight.shape[0]
    hidden = last_hidden_states(model, token_ids)[first_target - 1 : -1]  # [targets, width]
    for part in slices_of(len(hidden), vocabulary):
        yield range(first_target + part.start, first_target + part.stop), head(hidden[part])


def write_store(model, trace: pandas.DataFrame, path: Path, metadata: StoreMetadata) -> None:
    """The store of a trace; while one prompt's positions are written, the model goes on with the next.

    Raises UserError for logits that are not finite.
    """
    head = output_head(model)

    def normalise(row, positions: range, logits: torch.Tensor) -> tuple:
        return row, positions, torch.log_softmax(logits, dim=-1)

    def keep(normalised: tuple) -> None:
        row, positions, log_probabilities = normalised
        if not torch.isfinite(log_probabilities).all():
            raise UserError(
                f"the baseline of {metadata['model']} gives NaN or infinite logits on {row.prompt_id}; a model like "
                "this cannot be compared with (try `dtype: bfloat16` or float32)"
            )
        targets = [int(row.token_ids[p]) for p in positions]
        store.write(row.prompt_id, row.category, positions, targets, log_probabilities)

    vocabulary = model.get_output_embeddings().weight.shape[0]
    with StoreWriter(path, vocabulary, metadata) as store, background_scorer(model.device) as in_background:
        for row in tqdm(list(trace.itertuples()), desc="logits", unit="prompt", mininterval=5):
            ids = [int(i) for i in row.token_ids]
            check_ids(model, ids)
            for positions, logits in target_logits(model, head, ids, row.first_target):
                in_background(normalise, keep, row, positions, logits)


def main() -> None:
    parser = cell_parser(__doc__)
    parser.add_argument("--generation", type=Path, required=True, help="generation.parquet of the baseline")
    parser.add_argument("--generation-record", type=Path, required=True, help="generation.json of the baseline")
    parser.add_argument("--text", type=Path, required=True, help="evaluation text")
    parser.add_argument("--window-tokens", type=int, default=2048, help="shortened to the model's context")
    parser.add_argument("--bos-every-window", default="auto", choices=["auto", "true", "false"])
    parser.add_argument("--text-windows", type=int, default=2, help="windows of the text to store")
    parser.add_argument("--trace", type=Path, required=True, help="trace.parquet")
    parser.add_argument("--output", type=Path, required=True, help="logits.parquet")
    parser.add_argument("--record", type=Path, required=True, help="logits.json: size, metadata, timing")
    arguments = parser.parse_args()
    timing = begin_model_stage()
    cell = open_cell(arguments.quantization, arguments.device, timing)
    record, device, tokenizer, model = cell.record, cell.device, cell.tokenizer, cell.model
    length = min(arguments.window_tokens, context_length(model.config) or arguments.window_tokens)
    bos = bos_in_front(arguments.bos_every_window, tokenizer, model.config.model_type)
    windows = token_windows(tokenizer, read_text(arguments.text), length, bos)[: arguments.text_windows]
    trace = make_trace(read_parquet(arguments.generation), windows)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    identity = store_metadata_of(record, trace, device, protocol_name(length, arguments.text_windows, bos))
    asked: GenerationRecord = read_json(arguments.generation_record)

    with timing.part("model"), replacing(arguments.output) as path:
        metadata: StoreMetadata = {
            **identity,
            "prompt_tokens_sha256": asked["prompt_tokens_sha256"],
            "thinking": asked["thinking"],
            "template_date": asked["template_date"],
            "system_prompt": asked["system_prompt"],
            "hardware_floor": measure_floor(model, trace, TEXT_CATEGORY),
        }
        write_store(model, trace, path, metadata)
    write_parquet(arguments.trace, trace)
    size = arguments.output.stat().st_size
    positions = int(sum(len(ids) - first for ids, first in zip(trace["token_ids"], trace["first_target"], strict=True)))
    bytes_per_entry = size / positions / vocabulary
    result: LogitsRecord = {
        "model": record["model"],
        "positions": positions,
        "vocabulary": vocabulary,
        "bytes": size,
        "bytes_per_entry": bytes_per_entry,
        "metadata": metadata,
        "timing": timing.record(),
        "provenance": cell.provenance(),
    }
    write_json(arguments.record, result)
    print(
        f"{record['model']}: {positions:,} positions × {vocabulary:,} entries, {size / 1e6:.1f} MB, "
        f"{bytes_per_entry:.4f} bytes an entry"
    )


if __name__ == "__main__":
    run_stage(main)
