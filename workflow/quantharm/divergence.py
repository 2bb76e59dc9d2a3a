"""Divergence of one cell from the baseline along the trace, position by position.

Positions → prompt mean → category mean → mean of categories, with 95 % intervals over prompts within categories. The
category `text` (natural text) stands outside that mean; its figures are those of perplexity.json, taken in the pass
that scored the text. Writes a row a position of the prompts and divergence.json, which also holds the worst positions
of the prompts with both models' first choices.
"""

from pathlib import Path

from quantharm.common.files import read_json, read_parquet, write_json, write_parquet
from quantharm.common.provenance import with_nulls
from quantharm.common.records.divergence import DivergenceRecord
from quantharm.common.stage import begin_model_stage, cell_parser, run_stage
from quantharm.models.cell import open_cell
from quantharm.scoring.divergence_figures import check_values, lower_bound_of, summarise
from quantharm.scoring.kl_divergence import score_store
from quantharm.scoring.paired_logits import sequences_of
from quantharm.scoring.shared_tokens import require_tokens
from quantharm.scoring.store_metadata import store_metadata_of
from quantharm.scoring.stored_logits import require_same
from quantharm.scoring.worst_positions import WorstPositions, with_texts


def main() -> None:
    parser = cell_parser(__doc__)
    parser.add_argument("--trace", type=Path, required=True, help="trace.parquet of the baseline")
    parser.add_argument("--logits", type=Path, required=True, help="logits.parquet of the baseline")
    parser.add_argument("--perplexity", type=Path, help="perplexity.json of the cell, with the figures of the text")
    parser.add_argument("--rows", type=Path, required=True, help="divergence.parquet")
    parser.add_argument("--output", type=Path, required=True, help="divergence.json")
    arguments = parser.parse_args()
    timing = begin_model_stage()
    trace = read_parquet(arguments.trace)
    cell = open_cell(arguments.quantization, arguments.device, timing)
    record, device, tokenizer, model = cell.record, cell.device, cell.tokenizer, cell.model
    identity = store_metadata_of(record, trace, device, protocol="")
    same = {key: value for key, value in identity.items() if key not in ("versions", "protocol")}
    metadata = require_same(arguments.logits, same)
    require_tokens(model, tokenizer, arguments.logits, cell.title)
    with timing.part("model"):
        worst = WorstPositions()
        rows = score_store(model, arguments.logits, trace, worst)
    check_values(rows, cell.title)
    write_parquet(arguments.rows, rows)
    figures = summarise(rows, read_json(arguments.perplexity) if arguments.perplexity else None)
    shown = cell.shows_top_tokens
    sequences = sequences_of(trace)
    divergence: DivergenceRecord = {
        **cell.names(),
        **figures,
        "kl_is_lower_bound": shown is not None,
        "kl_lower_bound": lower_bound_of(rows, figures["kl_nats"]["mean"], shown),
        "worst_positions": with_texts(worst.records(rows, sequences), tokenizer, sequences),
        "trace_sha256": metadata["trace_sha256"],
        "store": {
            "stored": metadata.get("stored"),
            "protocol": metadata["protocol"],
            "device": metadata["device"],
            "dtype": metadata["dtype"],
            "versions": metadata["versions"],
            "hardware_floor": metadata.get("hardware_floor"),
            **with_nulls(metadata),
        },
        "peak_memory_bytes": cell.peak_memory_bytes(),
        "timing": timing.record(),
        "provenance": cell.provenance(),
    }
    write_json(arguments.output, divergence)
    cell.finished()
    print(
        f"{cell.title}: KL {'≥ ' if shown else ''}{divergence['kl_nats']['mean']:.3g} nats, "
        f"top-1 agreement {divergence['top1_agreement']:.2%} over {divergence['positions']:,} positions"
    )


if __name__ == "__main__":
    run_stage(main)
