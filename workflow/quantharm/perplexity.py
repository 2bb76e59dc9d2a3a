"""Perplexity of one cell on the evaluation text, protocol concat-N, and its divergence from the baseline there.

PPL = exp(Σ NLL / Σ targets) over windows of N tokens, each scored on its last N - 1 tokens, losses in float32 and
sums in float64. The 95 % interval is Student's t over windows. The same forward pass of a window gives the KL
divergence from the baseline at each position, for the windows that the baseline's store has (all, unless the protocol's
`text_windows:` says otherwise). Writes a row a window and perplexity.json.
"""

import math
from pathlib import Path
from typing import Any

import numpy
import pandas
import torch
from tqdm import tqdm

from quantharm.common.constants import TEXT_CATEGORY
from quantharm.common.errors import UserError
from quantharm.common.files import sha256_of_text, write_json, write_parquet
from quantharm.common.ratios import weighted_mean_interval
from quantharm.common.records.perplexity import PerplexityRecord
from quantharm.common.records.quantization import QuantizationRecord
from quantharm.common.stage import begin_model_stage, cell_parser, run_stage
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
    ask_ahead,
    background_scorer,
    check_ids,
    last_hidden_states,
    output_head,
    slices_of,
    token_losses,
)
from quantharm.scoring.host_copy import HostCopy
from quantharm.scoring.kl_divergence import score
from quantharm.scoring.paired_logits import Piece, pieces_of
from quantharm.scoring.shared_tokens import require_tokens
from quantharm.scoring.store_metadata import cell_metadata_of, text_id
from quantharm.scoring.stored_logits import require_same
from quantharm.scoring.text_divergence import NOT_COMPARED, TextDivergence


def score_windows(model, windows: list[list[int]], progress: bool = True) -> torch.Tensor:
    """NLL in nats of each window's targets; windows: equal lengths N → [windows, N - 1] float32 on the CPU."""
    head = output_head(model)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    check_ids(model, windows[0])
    ask_ahead(model, [(window, 1) for window in windows])
    losses: list[torch.Tensor] = []
    with background_scorer(model.device, long_passes=True) as in_background:
        for window in tqdm(windows, desc="perplexity", unit="window", mininterval=5, disable=not progress):
            hidden, targets = (
                last_hidden_states(model, window)[:-1],
                torch.tensor(window[1:]),
            )  # [N - 1, width], [N - 1]
            for part in slices_of(len(hidden), vocabulary):
                in_background(token_losses, losses.append, head(hidden[part]), targets[part])
    return torch.cat([loss.cpu() for loss in losses]).unflatten(0, (len(windows), -1))


def score_against_store(
    model, windows: list[list[int]], store: Path, progress: bool = True
) -> tuple[torch.Tensor, TextDivergence]:
    """NLL of each target as score_windows gives it, and the divergence from the baseline, of one pass a window.

    windows: those of the store, of equal lengths.
    """
    numbers = {text_id(i): i for i in range(len(windows))}
    divergence = TextDivergence(len(windows), len(windows[0]) - 1)
    losses = torch.empty(len(windows), len(windows[0]) - 1)

    def score_and_send(pieces: list[Piece]) -> tuple[dict[str, Any], list[str], HostCopy]:
        known, names, values = score(pieces)
        return known, names, HostCopy(values)

    def keep(scored: tuple[dict[str, Any], list[str], HostCopy]) -> None:
        known, names, copy = scored
        window, position = numbers[known["prompt_id"][0]], known["position"]
        measures = dict(zip(names, copy.tensor().numpy(), strict=True))
        losses[window, position - 1] = torch.from_numpy(measures["nll_nats"]).float()
        divergence.add(window, position, measures)

    sequences = dict(zip(numbers, windows, strict=True))
    ask_ahead(model, [(window, 1) for window in windows])
    pieces = pieces_of(model, store, sequences, lambda _, category: category == TEXT_CATEGORY, progress, "perplexity")
    with background_scorer(model.device, small_results=True, long_passes=True) as in_background:
        for piece in pieces:
            in_background(score_and_send, keep, [piece])
    return losses, divergence


def stored_windows(
    store: Path, record: QuantizationRecord, device: str, windows: list[list[int]], protocol: str
) -> int:
    """The number of windows in the baseline's store; raises UserError for a store of something else."""
    metadata = require_same(store, cell_metadata_of(record, device))
    count = metadata["text_windows"]
    if sha256_of_windows(windows[:count]) != metadata["text_tokens_sha256"]:
        raise UserError(
            f"the log-prob store {store} was made with other windows of the text (protocol {metadata['protocol']!r}) "
            f"than this cell is scored on ({protocol!r}); figures of the two cannot be compared: delete the store and "
            "run the same command again"
        )
    return count


def remedy(record: QuantizationRecord) -> str:
    """How the error about losses that are not finite ends: its likely cause, and what to try."""
    if record["settings"].get("kv_cache"):
        return (
            "its quantized cache overflows, or the checkpoint does: try another `kv_cache:`, or the method without one "
            "(transformers' fp8 cache takes its scale from a sequence's first tokens; PyTorch 2.11 makes NaN of larger "
            "numbers, PyTorch 2.13 the largest that fits)"
        )
    return "this checkpoint cannot be scored (try `dtype: bfloat16` or float32)"


def main() -> None:
    parser = cell_parser(__doc__)
    parser.add_argument("--text", type=Path, required=True, help="evaluation text")
    parser.add_argument("--window-tokens", type=int, default=2048, help="shortened to the model's context")
    parser.add_argument("--bos-every-window", default="auto", choices=["auto", "true", "false"])
    parser.add_argument("--windows", type=int, help="score only the first so many (another protocol name)")
    parser.add_argument("--logits", type=Path, help="logits.parquet of the baseline, its output head beside it")
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

    protocol = protocol_name(length, arguments.windows, bos)
    compared = stored_windows(arguments.logits, cell.record, device, windows, protocol) if arguments.logits else 0
    if compared:
        require_tokens(model, tokenizer, arguments.logits, cell.title)
    with timing.part("model"):
        losses, divergence = [], None  # [windows, N - 1]
        if compared:
            first, divergence = score_against_store(model, windows[:compared], arguments.logits)
            losses.append(first)
        if windows[compared:]:
            losses.append(score_windows(model, windows[compared:]))
        losses = torch.cat(losses)
    seconds = timing.seconds["model"]
    finite = torch.isfinite(losses)
    if not finite.all():
        raise UserError(
            f"{int((~finite).sum())} of {finite.numel()} tokens have a NaN or infinite loss in {cell.title}, "
            f"the first in window {int((~finite).any(1).nonzero()[0])}; {remedy(cell.record)}"
        )
    sums = losses.double().sum(1).numpy()  # [windows]
    targets = [len(window) - 1 for window in windows]
    scored = sum(targets)
    mean = float(sums.sum() / scored)
    # The same tokens as bytes: the bits of a token are comparable between tokenizers only by the byte.
    scored_text_bytes = scored_bytes(tokenizer, text, windows, bos)
    rows = pandas.DataFrame({"window": range(len(windows)), "nll_sum_nats": sums, "targets": targets})
    if divergence:
        divergence.check(cell.title)
        rows = rows.join(divergence.rows())  # empty where the baseline's store has no such window
    write_parquet(arguments.rows, rows)
    asked = len(windows) - len(cell.kept_answers)
    record: PerplexityRecord = {
        **cell.names(),
        "protocol": protocol,
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
        **(divergence.figures() if divergence else NOT_COMPARED),
        "seconds": seconds,
        "tokens_per_second": asked * length / seconds if asked else None,
        "kl_is_lower_bound": cell.shows_top_tokens is not None,
        "peak_memory_bytes": cell.peak_memory_bytes(),
        "timing": timing.record(),
        "provenance": cell.provenance(),
    }
    write_json(arguments.output, record)
    cell.finished()
    print(f"{cell.title}: perplexity {math.exp(mean):.4f} on {scored:,} tokens")


if __name__ == "__main__":
    run_stage(main)
