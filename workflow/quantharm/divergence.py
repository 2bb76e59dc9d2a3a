"""Divergence of one cell from the baseline's log-prob store, position by position over the trace.

KL(p ‖ q) = Σ_v p_v (ln p_v - ln q_v) in nats, p the baseline, q the method, over the whole vocabulary, in float64, with
no epsilon. Positions → prompt mean → category mean → mean of categories; 95 % intervals by a bootstrap over prompts
within categories. The category `text` (natural text) stands outside that mean. Writes a row a position and
divergence.json.
"""

from pathlib import Path
from typing import Any

import numpy
import pandas
import torch
from tqdm import tqdm

from quantharm.errors import UserError
from quantharm.files import read_parquet, write_json, write_parquet
from quantharm.logits import TEXT_CATEGORY, store_metadata_of
from quantharm.models import choose_device, load_cell, offline_environment, read_quantization
from quantharm.provenance import memory_bytes, provenance
from quantharm.scoring import check_ids, last_hidden_states, output_head
from quantharm.stage import Timing, run_stage, stage_parser
from quantharm.statistics import mean_of_means, stratified_mean
from quantharm.store import Positions, read_store, require_same

MOST_NEGATIVE_KL = -1e-6  # rounding; anything below is an error
CHUNK_ELEMENTS = 2**17  # float64 work in pieces that stay in a core's cache
QUANTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999}


def divergences(stored: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
    """Measures of each position; each value is [n] float64.

    stored: [n, vocabulary] float16 log-probabilities of the baseline, renormalised here; logits: [n, vocabulary]
    float32 of the method; targets: [n] ids of the tokens that follow. JS is the Jensen-Shannon divergence (Lin 1991),
    with natural logarithms, at most ln 2. delta_nll is ln p - ln q of the target, delta_p is q - p of it.
    """
    ln_p = torch.log_softmax(stored.double(), dim=-1)
    ln_q = torch.log_softmax(logits.double(), dim=-1)
    p, q = ln_p.exp(), ln_q.exp()
    difference = ln_p - ln_q
    ln_m = ((p + q) / 2).log_()
    kl = (p * difference).sum(-1)
    reverse = -(q * difference).sum(-1)
    # Σ p ln p - Σ p ln m and Σ q ln q - Σ q ln m, halved.
    js = ((p * (ln_p - ln_m)).sum(-1) + (q * (ln_q - ln_m)).sum(-1)) / 2
    target = targets.unsqueeze(-1)
    ln_p_target, ln_q_target = ln_p.gather(-1, target)[:, 0], ln_q.gather(-1, target)[:, 0]
    top1 = stored.argmax(-1)
    return {
        "kl_nats": kl,
        "reverse_kl_nats": reverse,
        "js_nats": js,
        "delta_p": ln_q_target.exp() - ln_p_target.exp(),
        "delta_nll_nats": ln_p_target - ln_q_target,
        "top1_agrees": logits.argmax(-1) == top1,
        "baseline_top1_p": ln_p.gather(-1, top1.unsqueeze(-1))[:, 0].exp(),
    }


def score_positions(group: Positions, hidden: torch.Tensor, head) -> pandas.DataFrame:
    """Rows of divergence.parquet for one row group; hidden: [n, width] states that predict its tokens."""
    step = max(1, CHUNK_ELEMENTS // group.log_probabilities.shape[1]) if hidden.device.type == "cpu" else 64
    parts = []
    for start in range(0, len(hidden), step):
        logits = head(hidden[start : start + step])
        device = logits.device
        stored = group.log_probabilities[start : start + step].to(device, non_blocking=True)
        targets = torch.from_numpy(group.token_id[start : start + step].astype(numpy.int64)).to(device)
        parts.append(divergences(stored, logits, targets))
    columns = {key: torch.cat([part[key] for part in parts]).cpu().numpy() for key in parts[0]}
    return pandas.DataFrame(
        {"prompt_id": group.prompt_id, "category": group.category, "position": group.position} | columns
    )


def score_store(model, store: Path, trace: pandas.DataFrame) -> pandas.DataFrame:
    """All rows of divergence.parquet; one forward pass a prompt, the next row group read meanwhile."""
    head = output_head(model)
    sequences = {row.prompt_id: (list(map(int, row.token_ids)), row.first_target) for row in trace.itertuples()}
    frames = []
    current, hidden = None, None
    progress = tqdm(total=len(sequences), desc="divergence", unit="prompt", mininterval=5)
    for group in read_store(store):
        if group.prompt_id not in sequences:
            raise UserError(f"the log-prob store {store} has {group.prompt_id}, which the trace lacks; delete both")
        ids, _ = sequences[group.prompt_id]
        if group.prompt_id != current:
            check_ids(model, ids)
            hidden, current = last_hidden_states(model, ids), group.prompt_id  # [T, width]
            progress.update()
        positions = group.position
        if [ids[p] for p in positions] != group.token_id.tolist():
            raise UserError(f"the log-prob store {store} has other tokens than the trace in {current}; delete both")
        frames.append(score_positions(group, hidden[positions[0] - 1 : positions[-1]], head))
    progress.close()
    return pandas.concat(frames, ignore_index=True)


def check_values(rows: pandas.DataFrame, cell: str) -> None:
    """Raises UserError for a divergence that is not a number or is below zero by more than rounding."""
    bad = rows[~numpy.isfinite(rows[["kl_nats", "reverse_kl_nats", "js_nats"]]).all(axis=1)]
    if len(bad):
        first = bad.iloc[0]
        raise UserError(
            f"{cell}: {len(bad)} of {len(rows)} positions have a NaN or infinite divergence, the first in "
            f"{first.prompt_id} at {first.position}; the checkpoint gives logits that are not finite"
        )
    lowest = rows["kl_nats"].min()
    if lowest < MOST_NEGATIVE_KL:
        raise UserError(f"{cell}: a KL divergence of {lowest:.2e} nats, below zero by more than rounding; report this")


def summarise(rows: pandas.DataFrame) -> dict[str, Any]:
    """Figures of divergence.json over the prompt categories (the text category apart)."""
    prompts = rows[rows["category"] != TEXT_CATEGORY]
    means = prompts.groupby(["category", "prompt_id"], sort=False)["kl_nats"].mean()  # prompt means
    strata = [means[c].to_numpy() for c in prompts["category"].unique()]
    kl = prompts["kl_nats"]

    def overall(column: str) -> float:
        per_prompt = prompts.groupby(["category", "prompt_id"], sort=False)[column].mean()
        return float(mean_of_means(*[per_prompt[c].to_numpy() for c in prompts["category"].unique()]))

    by_category = {}
    for category, part in rows.groupby("category", sort=False):
        own = part.groupby("prompt_id", sort=False)["kl_nats"].mean().to_numpy()
        figures = stratified_mean([own])
        by_category[category] = {
            "kl_nats_mean": figures["mean"],
            "ci95": figures["ci95"],
            "top1_agreement": float(part["top1_agrees"].mean()),
            "prompts": len(own),
            "positions": len(part),
        }
    text = rows[rows["category"] == TEXT_CATEGORY]
    return {
        "kl_nats": stratified_mean(strata)
        | {name: float(kl.quantile(q)) for name, q in QUANTILES.items()}
        | {"max": float(kl.max())},
        "reverse_kl_nats_mean": overall("reverse_kl_nats"),
        "js_nats_mean": overall("js_nats"),
        "top1_agreement": overall("top1_agrees"),
        "delta_p": {
            "mean": float(prompts["delta_p"].mean()),
            "rms": float((prompts["delta_p"] ** 2).mean() ** 0.5),
        },
        "by_category": by_category,
        "positions": len(prompts),
        "text": {
            "positions": len(text),
            "kl_nats_mean": float(text["kl_nats"].mean()),
            "log_perplexity_ratio": float(text["delta_nll_nats"].mean()),
            "top1_agreement": float(text["top1_agrees"].mean()),
        }
        if len(text)
        else None,
    }


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--quantization", type=Path, required=True, help="quantization.json of the cell")
    parser.add_argument("--trace", type=Path, required=True, help="trace.parquet of the baseline")
    parser.add_argument("--logits", type=Path, required=True, help="logits.parquet of the baseline")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--rows", type=Path, required=True, help="divergence.parquet")
    parser.add_argument("--output", type=Path, required=True, help="divergence.json")
    arguments = parser.parse_args()
    offline_environment()
    timing = Timing()
    timing.imports()
    device = choose_device(arguments.device)
    record = read_quantization(arguments.quantization)
    trace = read_parquet(arguments.trace)
    expected = store_metadata_of(record, trace, device, protocol="")
    del expected["protocol"], expected["versions"]
    metadata = require_same(arguments.logits, expected)
    with timing.part("load"):
        model = load_cell(record, device)
    with timing.part("model"):
        rows = score_store(model, arguments.logits, trace)
    check_values(rows, f"{record['model']} × {record['method']}")
    write_parquet(arguments.rows, rows)
    result = summarise(rows)
    write_json(
        arguments.output,
        {
            "model": record["model"],
            "method": record["method"],
            **result,
            "trace_sha256": metadata["trace_sha256"],
            "store": {key: metadata[key] for key in ("protocol", "device", "dtype", "versions")},
            "peak_memory_bytes": memory_bytes(device)["peak_bytes"],
            "timing": timing.record(),
            "provenance": provenance(device, record["dtype"]),
        },
    )
    print(
        f"{record['model']} × {record['method']}: KL {result['kl_nats']['mean']:.3g} nats, "
        f"top-1 agreement {result['top1_agreement']:.2%} over {result['positions']:,} positions"
    )


if __name__ == "__main__":
    run_stage(main)
