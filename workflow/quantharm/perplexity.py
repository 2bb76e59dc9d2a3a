"""Perplexity of one cell on the evaluation text, protocol concat-N.

PPL = exp(Σ NLL / Σ targets) over windows of N tokens, each scored on its last N - 1 tokens, losses in float32 and
sums in float64. The 95 % interval is Student's t over windows. Writes a row a window and perplexity.json.
"""

import math
from pathlib import Path

import numpy
import pandas
import torch
from tqdm import tqdm

from quantharm.common.errors import UserError
from quantharm.common.files import sha256_of_text, write_json, write_parquet
from quantharm.common.provenance import memory_bytes
from quantharm.common.records.perplexity import PerplexityRecord
from quantharm.common.stage import begin_model_stage, cell_parser, run_stage
from quantharm.common.statistics import weighted_mean_interval
from quantharm.common.text import (
    bos_in_front,
    context_length,
    protocol_name,
    read_text,
    scored_bytes,
    sha256_of_windows,
    token_windows,
)
from quantharm.models.cell import open_cell
from quantharm.scoring.forward import (
    background_scorer,
    check_ids,
    last_hidden_states,
    output_head,
    slices_of,
    token_losses,
)


def score_windows(model, windows: list[list[int]], progress: bool = True) -> torch.Tensor:
    """NLL in nats of each window's targets; windows: equal lengths N → [windows, N - 1] float32 on the CPU."""
    head = output_head(model)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    check_ids(model, windows[0])
    losses: list[torch.Tensor] = []
    with background_scorer(model.device) as in_background:
        for window in tqdm(windows, desc="perplexity", unit="window", mininterval=5, disable=not progress):
            hidden, targets = (
                last_hidden_states(model, window)[:-1],
                torch.tensor(window[1:]),
            )  # [N - 1, width], [N - 1]
            for part in slices_of(len(hidden), vocabulary):
                in_background(token_losses, losses.append, head(hidden[part]), targets[part])
    return torch.cat([loss.cpu() for loss in losses]).unflatten(0, (len(windows), -1))


def main() -> None:
    parser = cell_parser(__doc__)
    parser.add_argument("--text", type=Path, required=True, help="evaluation text")
    parser.add_argument("--window-tokens", type=int, default=2048, help="shortened to the model's context")
    parser.add_argument("--bos-every-window", default="auto", choices=["auto", "true", "false"])
    parser.add_argument("--windows", type=int, help="score only the first so many (another protocol name)")
    parser.add_argument("--rows", type=Path, required=True, help="perplexity.parquet")
    parser.add_argument("--output", type=Path, required=True, help="perplexity.json")
    arguments = parser.parse_args()
    timing = begin_model_stage()
    text = read_text(arguments.text)
    cell = open_cell(arguments.quantization, arguments.device, timing)
    device, tokenizer, model = cell.device, cell.tokenizer, cell.model
    length = min(arguments.window_tokens, context_length(model.config) or arguments.window_tokens)
    bos = bos_in_front(arguments.bos_every_window, tokenizer, model.config.model_type)
    windows = token_windows(tokenizer, text, length, bos)[: arguments.windows]

    with timing.part("model"):
        losses = score_windows(model, windows)  # [windows, N - 1]
    seconds = timing.seconds["model"]
    finite = torch.isfinite(losses)
    if not finite.all():
        raise UserError(
            f"{int((~finite).sum())} of {finite.numel()} tokens have a NaN or infinite loss in {cell.title}, "
            f"the first in window {int((~finite).any(1).nonzero()[0])}; this checkpoint cannot be "
            "scored (try `dtype: bfloat16` or float32)"
        )
    sums = losses.double().sum(1).numpy()  # [windows]
    targets = [len(window) - 1 for window in windows]
    scored = sum(targets)
    mean = float(sums.sum() / scored)
    # The same tokens as bytes: the bits of a token are comparable between tokenizers only by the byte.
    scored_text_bytes = scored_bytes(tokenizer, text, windows, bos)
    write_parquet(
        arguments.rows,
        pandas.DataFrame({"window": range(len(windows)), "nll_sum_nats": sums, "targets": targets}),
    )
    record: PerplexityRecord = {
        **cell.names(),
        "protocol": protocol_name(length, arguments.windows, bos),
        "dataset": str(arguments.text),
        "dataset_sha256": sha256_of_text(text),
        "tokens_sha256": sha256_of_windows(windows),
        "tokens_scored": scored,
        "bytes_scored": scored_text_bytes,
        "windows": len(windows),
        "nll_mean_nats": mean,
        "perplexity": math.exp(mean),
        "perplexity_ci95": weighted_mean_interval(sums, targets, numpy.exp),
        "bits_per_byte": mean * scored / math.log(2) / scored_text_bytes,
        "seconds": seconds,
        "tokens_per_second": len(windows) * length / seconds,
        "peak_memory_bytes": memory_bytes(device)["peak_bytes"],
        "timing": timing.record(),
        "provenance": cell.provenance(),
    }
    write_json(arguments.output, record)
    print(f"{cell.title}: perplexity {math.exp(mean):.4f} on {scored:,} tokens")


if __name__ == "__main__":
    run_stage(main)
