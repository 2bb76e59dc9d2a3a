"""Divergence of one cell from the baseline's log-prob store, position by position over the trace.

KL(p ‖ q) = Σ_v p_v (ln p_v - ln q_v) in nats, p the baseline, q the method, over the whole vocabulary, summed in
float64, with no epsilon. Positions → prompt mean → category mean → mean of categories; 95 % intervals by a bootstrap
over prompts within categories. The category `text` (natural text) stands outside that mean. Writes a row a position and
divergence.json, which also holds the worst positions of the prompts with both models' first choices.
"""

import collections
from pathlib import Path
from typing import Any

import numpy
import pandas
import torch
from tqdm import tqdm

from quantharm.errors import UserError
from quantharm.files import finite_or_none, read_parquet, write_json, write_parquet
from quantharm.logits import TEXT_CATEGORY, store_metadata_of
from quantharm.models import choose_device, dtype_of, load_cell, load_tokenizer, offline_environment, read_quantization
from quantharm.provenance import memory_bytes, provenance
from quantharm.scoring import check_ids, last_hidden_states, one_thread_beside, output_head, slices_of
from quantharm.stage import Timing, run_stage, stage_parser
from quantharm.statistics import mean_of_means, stratified_mean
from quantharm.store import Positions, read_store, require_same
from quantharm.text import context_length, protocol_name
from quantharm.worst_positions import WorstPositions, with_texts

MOST_NEGATIVE_KL = -1e-6  # rounding; anything below is an error
READERS_FOR_GPU = 4  # it scores positions faster than one thread can read and verify them
CHUNK_ELEMENTS = 2**17  # entries worked on at once: few enough for a core's cache, enough to be worth a call
QUANTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999}


def divergences(
    stored: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor, top_tokens: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Measures of each position; each value is [n], float64 but for top1_agrees.

    stored: [n, vocabulary] float16 log-probabilities of the baseline, renormalised here; logits: [n, vocabulary]
    float32 of the method; targets, top_tokens: [n] ids of the tokens that follow and of the baseline's first choice.
    JS is the Jensen-Shannon divergence (Lin 1991), with natural logarithms, at most ln 2. delta_nll is ln p - ln q of
    the target, delta_p is q - p of it.
    """
    step = len(logits) if logits.is_cuda else max(1, CHUNK_ELEMENTS // logits.shape[1])
    chunks = [slice(start, start + step) for start in range(0, len(logits), step)]
    sums = [vocabulary_sums(stored[chunk], logits[chunk]) for chunk in chunks]
    kl, reverse, js, ln_sum_p, ln_sum_q, largest = (torch.cat(column) for column in zip(*sums, strict=True))

    ids = torch.stack([targets, top_tokens], dim=-1)
    stored_target, stored_top = stored.gather(-1, ids).double().unbind(-1)
    logit_target, logit_top = logits.gather(-1, ids).double().unbind(-1)
    ln_p_target, ln_q_target = stored_target - ln_sum_p, logit_target - largest - ln_sum_q
    return {
        "kl_nats": kl,
        "reverse_kl_nats": reverse,
        "js_nats": js,
        "delta_p": ln_q_target.exp() - ln_p_target.exp(),
        "delta_nll_nats": ln_p_target - ln_q_target,
        "top1_agrees": logit_top == largest,
        "baseline_top1_p": (stored_top - ln_sum_p).exp(),
    }


def vocabulary_sums(stored: torch.Tensor, logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Sums over the vocabulary: (KL, reverse KL, JS, ln Σ e^stored, ln Σ e^(logits - largest), largest logit).

    Each [n] float64. Entries are float32, what is summed is added in a cascade, and constants of a row are kept in
    float64 with what rounding left out of them. Of float64 throughout it is within 3e-6 nats at a position and 2e-7
    on average (of a divergence above one nat: within that part of it), in a tenth of the time.
    """
    work = torch.promote_types(logits.dtype, torch.float32)
    largest = logits.amax(-1, keepdim=True)
    ln_p, ln_q = stored.to(work, copy=True), logits.to(work) - largest  # each but for its row's constant
    p, q = ln_p.exp(), ln_q.exp()
    sum_p, sum_q = row_sums(p), row_sums(q)
    ln_sum_p, ln_sum_q = sum_p.log(), sum_q.log()
    p.mul_((0.5 / sum_p).to(work))  # halves, so that p + q is the distribution m between the two
    q.mul_((0.5 / sum_q).to(work))
    rounded_p, rounded_q = ln_sum_p.to(work), ln_sum_q.to(work)
    rest = (rounded_p - ln_sum_p) - (rounded_q - ln_sum_q)
    ln_q.sub_(rounded_q)
    difference = ln_p.sub_(rounded_p).sub_(ln_q)  # ln p - ln q
    kl = 2 * row_sums(p * difference) + rest
    reverse = -2 * row_sums(difference.mul_(q)) - rest
    # JS = ½ KL(p ‖ m) + ½ KL(q ‖ m) = ½ KL(p ‖ q) + Σ m (ln q - ln m)
    m = p.add_(q).clamp_min_(torch.finfo(work).tiny)  # where both are 0, 0 × ln 0 is to be 0
    js = kl / 2 + row_sums(ln_q.sub_(m.log()).mul_(m)) + (rounded_q - ln_sum_q)
    return tuple(column[:, 0].double() for column in (kl, reverse, js, ln_sum_p, ln_sum_q, largest))


def row_sums(values: torch.Tensor) -> torch.Tensor:
    """Σ over the vocabulary, [n, 1] float64; torch adds float32 in a cascade, so that rounding does not pile up."""
    return values.sum(-1, keepdim=True).double()


def score_store(model, store: Path, trace: pandas.DataFrame, worst: WorstPositions) -> pandas.DataFrame:
    """All rows of divergence.parquet; one forward pass a prompt.

    While this thread runs the model, others read the next row groups and score the logits of the last ones.
    """
    head = output_head(model)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    sequences = {row.prompt_id: list(map(int, row.token_ids)) for row in trace.itertuples()}
    columns: dict[str, list[numpy.ndarray]] = collections.defaultdict(list)

    def score(group: Positions, part: slice, logits: torch.Tensor) -> tuple:
        ids = torch.from_numpy(numpy.stack([group.token_id[part], group.top_token_id[part]]).astype(numpy.int64))
        stored = group.log_probabilities[part].to(logits.device, non_blocking=True)
        figures = divergences(stored, logits, *ids.to(logits.device, non_blocking=True))
        return group, part, stored, logits, figures

    def collect(scored: tuple) -> None:
        group, part, stored, logits, figures = scored
        on_host = torch.stack([column.double() for column in figures.values()]).cpu().numpy()
        rows = {key: numpy.repeat(getattr(group, key), len(logits)) for key in ("prompt_id", "category")}
        rows |= {"position": group.position[part]} | dict(zip(figures, on_host, strict=True))
        rows["top1_agrees"] = rows["top1_agrees"] == 1
        if group.category != TEXT_CATEGORY:  # `worst` shows what the method does to answers
            worst.offer(group.prompt_id, group.category, rows, group.token_id[part], stored, logits)
        for key, values in rows.items():
            columns[key].append(values)

    current, hidden = None, None
    on_gpu = model.device.type == "cuda"
    progress = tqdm(total=len(sequences), desc="divergence", unit="prompt", mininterval=5)
    with one_thread_beside(model.device) as beside:
        for group in read_store(store, readers=READERS_FOR_GPU if on_gpu else 1, pinned=on_gpu):
            if group.prompt_id not in sequences:
                raise UserError(f"the log-prob store {store} has {group.prompt_id}, which the trace lacks; delete both")
            ids = sequences[group.prompt_id]
            if group.prompt_id != current:
                check_ids(model, ids)
                hidden, current = last_hidden_states(model, ids), group.prompt_id  # [T, width]
                progress.update()
            first, last = group.position[0], group.position[-1]
            if ids[first : last + 1] != group.token_id.tolist():
                raise UserError(f"the log-prob store {store} has other tokens than the trace in {current}; delete both")
            states = hidden[first - 1 : last]  # those that predict the group's tokens
            for part in slices_of(len(states), vocabulary):
                beside(score, collect, group, part, head(states[part]))
    progress.close()
    return pandas.DataFrame({key: numpy.concatenate(values) for key, values in columns.items()})


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
            "log_perplexity_ratio_standard_error": finite_or_none(float(text["delta_nll_nats"].sem())),
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
    parser.add_argument("--window-tokens", type=int, default=2048, help="of the store's protocol")
    parser.add_argument("--text-windows", type=int, default=2, help="of the store's protocol")
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
    with timing.part("load"):
        model = load_cell(record, device)
    length = min(arguments.window_tokens, context_length(model.config) or arguments.window_tokens)
    expected = store_metadata_of(record, trace, device, protocol_name(length, arguments.text_windows))
    del expected["versions"]
    metadata = require_same(arguments.logits, expected)
    with timing.part("model"):
        worst = WorstPositions()
        rows = score_store(model, arguments.logits, trace, worst)
    check_values(rows, f"{record['model']} × {record['method']}")
    write_parquet(arguments.rows, rows)
    result = summarise(rows)
    sequences = {row.prompt_id: list(map(int, row.token_ids)) for row in trace.itertuples()}
    write_json(
        arguments.output,
        {
            "model": record["model"],
            "method": record["method"],
            "synthetic": record["source"]["synthetic"],
            **result,
            "worst_positions": with_texts(worst.records(), load_tokenizer(record["source"]), sequences),
            "trace_sha256": metadata["trace_sha256"],
            "store": {key: metadata[key] for key in ("protocol", "device", "dtype", "versions")},
            "peak_memory_bytes": memory_bytes(device)["peak_bytes"],
            "timing": timing.record(),
            "provenance": provenance(device, dtype_of(model)),
        },
    )
    print(
        f"{record['model']} × {record['method']}: KL {result['kl_nats']['mean']:.3g} nats, "
        f"top-1 agreement {result['top1_agreement']:.2%} over {result['positions']:,} positions"
    )


if __name__ == "__main__":
    run_stage(main)
