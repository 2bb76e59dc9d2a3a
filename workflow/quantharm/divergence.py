"""Divergence of one cell from the baseline's log-prob store, position by position over the trace.

Positions → prompt mean → category mean → mean of categories, with 95 % intervals over prompts within categories. The
category `text` (natural text) stands outside that mean. Writes a row a position and divergence.json, which also
holds the worst positions of the prompts with both models' first choices.
"""

from pathlib import Path
from typing import Any

import numpy
import pandas

from quantharm.common.errors import UserError
from quantharm.common.files import finite_or_none, read_parquet, write_json, write_parquet
from quantharm.common.provenance import COMPUTE_KEYS, forget_device_peaks, memory_bytes, provenance
from quantharm.common.stage import Timing, run_stage, stage_parser
from quantharm.common.statistics import category_intervals, mean_of_means, stratified_mean
from quantharm.common.text import bos_in_front, context_length, protocol_name
from quantharm.logits import TEXT_CATEGORY, store_metadata_of
from quantharm.models.loading import (
    choose_device,
    dtype_of,
    load_cell,
    load_tokenizer,
    offline_environment,
    read_quantization,
)
from quantharm.scoring.kl_divergence import score_store
from quantharm.scoring.stored_logits import require_same
from quantharm.scoring.worst_positions import WorstPositions, with_texts

SHOWN_OF_STORE = ("protocol", "device", "dtype", "versions", "hardware_floor", *COMPUTE_KEYS)
MOST_NEGATIVE_KL = -1e-6  # rounding; anything below is an error
QUANTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999}


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

    intervals = dict(zip(prompts["category"].unique(), category_intervals(strata), strict=True))
    by_category = {}
    for category, part in rows.groupby("category", sort=False):
        own = part.groupby("prompt_id", sort=False)["kl_nats"].mean().to_numpy()
        by_category[category] = {
            "kl_nats_mean": float(own.mean()),
            "ci95": intervals[category] if category in intervals else stratified_mean([own])["ci95"],
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
            "squared_delta_nll_mean": float((text["delta_nll_nats"] ** 2).mean()),
            "squared_delta_nll_standard_error": finite_or_none(float((text["delta_nll_nats"] ** 2).sem())),
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
    parser.add_argument("--bos-every-window", default="auto", choices=["auto", "true", "false"])
    parser.add_argument("--text-windows", type=int, default=2, help="of the store's protocol")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--rows", type=Path, required=True, help="divergence.parquet")
    parser.add_argument("--output", type=Path, required=True, help="divergence.json")
    arguments = parser.parse_args()
    offline_environment()
    timing = Timing()
    timing.imports()
    record = read_quantization(arguments.quantization)
    device = choose_device(arguments.device, record["gpus"])
    trace = read_parquet(arguments.trace)
    with timing.part("load"):
        tokenizer = load_tokenizer(record["source"])
        model = load_cell(record, device)
    forget_device_peaks(device)
    length = min(arguments.window_tokens, context_length(model.config) or arguments.window_tokens)
    bos = bos_in_front(arguments.bos_every_window, tokenizer, model.config.model_type)
    expected = store_metadata_of(record, trace, device, protocol_name(length, arguments.text_windows, bos))
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
            "worst_positions": with_texts(worst.records(rows, sequences), tokenizer, sequences),
            "trace_sha256": metadata["trace_sha256"],
            "store": {key: metadata.get(key) for key in SHOWN_OF_STORE},
            "peak_memory_bytes": memory_bytes(device)["peak_bytes"],
            "timing": timing.record(),
            "provenance": provenance(device, record["dtype"], dtype_of(model)),
        },
    )
    print(
        f"{record['model']} × {record['method']}: KL {result['kl_nats']['mean']:.3g} nats, "
        f"top-1 agreement {result['top1_agreement']:.2%} over {result['positions']:,} positions"
    )


if __name__ == "__main__":
    run_stage(main)
