"""Divergence of one cell from the baseline's log-prob store, position by position over the trace.

Positions → prompt mean → category mean → mean of categories, with 95 % intervals over prompts within categories. The
category `text` (natural text) stands outside that mean. Writes a row a position and divergence.json, which also
holds the worst positions of the prompts with both models' first choices.
"""

from pathlib import Path

from quantharm.common.files import read_parquet, write_json, write_parquet
from quantharm.common.provenance import memory_bytes, with_nulls
from quantharm.common.records.divergence import DivergenceRecord
from quantharm.common.stage import begin_model_stage, cell_parser, run_stage
from quantharm.common.text import bos_in_front, context_length, protocol_name
from quantharm.models.cell import open_cell
from quantharm.scoring.divergence_figures import check_values, summarise
from quantharm.scoring.kl_divergence import score_store
from quantharm.scoring.store_metadata import store_metadata_of
from quantharm.scoring.stored_logits import require_same
from quantharm.scoring.worst_positions import WorstPositions, with_texts


def main() -> None:
    parser = cell_parser(__doc__)
    parser.add_argument("--trace", type=Path, required=True, help="trace.parquet of the baseline")
    parser.add_argument("--logits", type=Path, required=True, help="logits.parquet of the baseline")
    parser.add_argument("--window-tokens", type=int, default=2048, help="of the store's protocol")
    parser.add_argument("--bos-every-window", default="auto", choices=["auto", "true", "false"])
    parser.add_argument("--text-windows", type=int, default=2, help="of the store's protocol")
    parser.add_argument("--rows", type=Path, required=True, help="divergence.parquet")
    parser.add_argument("--output", type=Path, required=True, help="divergence.json")
    arguments = parser.parse_args()
    timing = begin_model_stage()
    trace = read_parquet(arguments.trace)
    cell = open_cell(arguments.quantization, arguments.device, timing)
    record, device, tokenizer, model = cell.record, cell.device, cell.tokenizer, cell.model
    length = min(arguments.window_tokens, context_length(model.config) or arguments.window_tokens)
    bos = bos_in_front(arguments.bos_every_window, tokenizer, model.config.model_type)
    identity = store_metadata_of(record, trace, device, protocol_name(length, arguments.text_windows, bos))
    metadata = require_same(arguments.logits, {key: value for key, value in identity.items() if key != "versions"})
    with timing.part("model"):
        worst = WorstPositions()
        rows = score_store(model, arguments.logits, trace, worst)
    check_values(rows, cell.title)
    write_parquet(arguments.rows, rows)
    figures = summarise(rows)
    sequences = {row.prompt_id: list(map(int, row.token_ids)) for row in trace.itertuples()}
    result: DivergenceRecord = {
        **cell.names(),
        **figures,
        "worst_positions": with_texts(worst.records(rows, sequences), tokenizer, sequences),
        "trace_sha256": metadata["trace_sha256"],
        "store": {
            "protocol": metadata["protocol"],
            "device": metadata["device"],
            "dtype": metadata["dtype"],
            "versions": metadata["versions"],
            "hardware_floor": metadata.get("hardware_floor"),
            **with_nulls(metadata),
        },
        "peak_memory_bytes": memory_bytes(device)["peak_bytes"],
        "timing": timing.record(),
        "provenance": cell.provenance(),
    }
    write_json(arguments.output, result)
    print(
        f"{cell.title}: KL {result['kl_nats']['mean']:.3g} nats, "
        f"top-1 agreement {result['top1_agreement']:.2%} over {result['positions']:,} positions"
    )


if __name__ == "__main__":
    run_stage(main)
