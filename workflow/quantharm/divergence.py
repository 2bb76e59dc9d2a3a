"""Divergence of one cell from the baseline's log-prob store, position by position over the trace.

KL(p ‖ q) = Σ_v p_v (ln p_v - ln q_v) in nats, p the baseline, q the method, over the whole vocabulary, summed in
float64, with no epsilon. Positions → prompt mean → category mean → mean of categories; 95 % intervals by a bootstrap
over prompts within categories. The category `text` (natural text) stands outside that mean. Writes a row a position and
divergence.json, which also holds the worst positions of the prompts with both models' first choices.
"""

import collections
import concurrent.futures
import contextlib
import math
import threading
from collections.abc import Iterator
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
from quantharm.scoring import check_ids, last_hidden_states, output_head, slices_of
from quantharm.stage import Timing, run_stage, stage_parser
from quantharm.statistics import mean_of_means, stratified_mean
from quantharm.store import Positions, read_store, require_same
from quantharm.text import context_length, protocol_name
from quantharm.worst_positions import WorstPositions, with_texts

LN_2 = math.log(2)
MOST_NEGATIVE_KL = -1e-6  # rounding; anything below is an error
CHUNK_ELEMENTS = 2**18  # entries that a core works on at once: few enough for its cache, enough to be worth a call
QUANTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999}


def divergences(
    stored: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor, top_tokens: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Measures of each position; each value is [n], float64 but for top1_agrees.

    stored: [n, vocabulary] float16 log-probabilities of the baseline, renormalised here; logits: [n, vocabulary]
    float32 of the method; targets, top_tokens: [n] ids of the tokens that follow and of the baseline's first choice.
    JS is the Jensen-Shannon divergence (Lin 1991), with natural logarithms, at most ln 2. delta_nll is ln p - ln q of
    the target, delta_p is q - p of it.

    Entries are float32, whatever is summed over them is added in a cascade or in float64, and constants of a row are
    kept apart in float64. Of float64 throughout it is within 3e-6 nats at a position and 2e-7 on average (of a
    divergence above one nat: within that part of it), in a tenth of the time. Powers and logarithms are of base 2,
    which takes a third of the time that base e takes.
    """
    work = torch.promote_types(logits.dtype, torch.float32)
    ln_p, ln_q = stored.to(work), logits.to(work) - logits.amax(-1, keepdim=True)  # each but for its row's constant
    p, q = (ln_p * (1 / LN_2)).exp2_(), (ln_q * (1 / LN_2)).exp2_()
    sum_p, sum_q = row_sums(p), row_sums(q)
    constant_p, constant_q = sum_p.log(), sum_q.log()  # [n, 1]: ln p = ln_p - constant_p
    p.mul_((1 / sum_p).to(work))
    q.mul_((1 / sum_q).to(work))
    target, top = targets.unsqueeze(-1), top_tokens.unsqueeze(-1)
    ln_p_target = ln_p.gather(-1, target).double() - constant_p
    ln_q_target = ln_q.gather(-1, target).double() - constant_q
    top1_p = (ln_p.gather(-1, top).double() - constant_p).exp()
    top1_agrees = ln_q.gather(-1, top) == 0  # ln_q is 0 where it is largest

    difference, rest = shifted(ln_p.sub_(ln_q), constant_q - constant_p)  # ln p - ln q
    kl = row_sums(p * difference) + rest
    reverse = -row_sums(q * difference) - rest
    # JS = ½ KL(p ‖ m) + ½ KL(q ‖ m) = ½ (KL(p ‖ q) + Σ (p + q)(ln q - ln m)), m = (p + q) / 2
    both = p.add_(q).clamp_min_(torch.finfo(work).tiny)  # where both are 0, 0 × ln 0 is to be 0
    above, rest = shifted(ln_q.sub_(log2(both, out=difference), alpha=LN_2), LN_2 - constant_q)  # ln q - ln m
    js = (kl + row_sums(above.mul_(both)) + 2 * rest) / 2
    columns = {
        "kl_nats": kl,
        "reverse_kl_nats": reverse,
        "js_nats": js,
        "delta_p": ln_q_target.exp() - ln_p_target.exp(),
        "delta_nll_nats": ln_p_target - ln_q_target,
        "top1_agrees": top1_agrees,
        "baseline_top1_p": top1_p,
    }
    return {name: column[:, 0] for name, column in columns.items()}


def row_sums(values: torch.Tensor) -> torch.Tensor:
    """Σ over the vocabulary, [n, 1] float64; torch adds float32 in a cascade, so that rounding does not pile up."""
    return values.sum(-1, keepdim=True).double()


def log2(values: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """log2 into `out`; by numpy on a CPU, where it takes a fifth of the time that torch's takes."""
    if values.is_cuda:
        return torch.log2(values, out=out)
    numpy.log2(values.numpy(), out=out.numpy())
    return out


def shifted(values: torch.Tensor, shift: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(values + shift in place, what its rounding left out): a shift [n, 1] in float64 loses nothing."""
    rounded = shift.to(values.dtype)
    return values.add_(rounded), shift - rounded.double()


@contextlib.contextmanager
def one_thread_a_core() -> Iterator[concurrent.futures.Executor]:
    """Threads for operations that are too small to be worth dividing among cores: each does whole ones alone."""
    count = torch.get_num_threads()
    with concurrent.futures.ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as cores:
        all_started = threading.Barrier(count)
        list(cores.map(lambda _: all_started.wait(), range(count)))
        torch.set_num_threads(count)  # again: OpenMP's number is a thread's own, MKL's is everyone's
        yield cores


def score_positions(
    group: Positions, part: slice, stored: torch.Tensor, logits: torch.Tensor, cores: concurrent.futures.Executor
) -> dict[str, torch.Tensor]:
    """divergences() of some positions of a row group, on the device of the logits [n, vocabulary]."""
    targets, tops = (
        torch.from_numpy(ids[part].astype(numpy.int64)).to(logits.device)
        for ids in (group.token_id, group.top_token_id)
    )
    if logits.is_cuda:
        return divergences(stored, logits, targets, tops)
    step = max(1, CHUNK_ELEMENTS // logits.shape[1])
    chunks = [slice(start, start + step) for start in range(0, len(logits), step)]
    found = list(cores.map(lambda c: divergences(stored[c], logits[c], targets[c], tops[c]), chunks))
    return {key: torch.cat([chunk[key] for chunk in found]) for key in found[0]}


def score_store(model, store: Path, trace: pandas.DataFrame, worst: WorstPositions) -> pandas.DataFrame:
    """All rows of divergence.parquet; one forward pass a prompt, while a thread reads the next row group.

    A GPU is asked for its figures only after it was given the next piece of work, so that it need not wait.
    """
    head = output_head(model)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    sequences = {row.prompt_id: list(map(int, row.token_ids)) for row in trace.itertuples()}
    columns: dict[str, list[numpy.ndarray]] = collections.defaultdict(list)

    def collect(group: Positions, part: slice, stored: torch.Tensor, logits: torch.Tensor, figures) -> None:
        rows = {
            "prompt_id": numpy.repeat(group.prompt_id, len(logits)),
            "category": numpy.repeat(group.category, len(logits)),
        }
        rows |= {"position": group.position[part]} | {key: value.cpu().numpy() for key, value in figures.items()}
        for key, values in rows.items():
            columns[key].append(values)
        if group.category != TEXT_CATEGORY:  # `worst` shows what the method does to answers
            worst.offer(pandas.DataFrame(rows), group.token_id[part], stored, logits)

    current, hidden, waiting = None, None, None
    progress = tqdm(total=len(sequences), desc="divergence", unit="prompt", mininterval=5)
    with one_thread_a_core() as cores:
        for group in read_store(store):
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
                logits = head(states[part])
                stored = group.log_probabilities[part].to(logits.device, non_blocking=True)
                figures = score_positions(group, part, stored, logits, cores)
                if waiting:
                    collect(*waiting)
                waiting = (group, part, stored, logits, figures)
        if waiting:
            collect(*waiting)
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
