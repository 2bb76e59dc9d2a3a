"""Figures of a cell's divergence from those of its positions: prompt mean → category mean → mean of categories."""

import numpy
import pandas

from quantharm.common.constants import TEXT_CATEGORY
from quantharm.common.errors import UserError
from quantharm.common.files import finite_or_none
from quantharm.common.records.divergence import CategoryDivergence, DivergenceFigures
from quantharm.common.statistics import category_intervals, mean_of_means, stratified_mean

MOST_NEGATIVE_KL = -1e-6  # rounding; anything below is an error


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


def summarise(rows: pandas.DataFrame) -> DivergenceFigures:
    """Figures of divergence.json over the prompt categories (the text category apart)."""
    prompts = rows[rows["category"] != TEXT_CATEGORY]
    means = prompts.groupby(["category", "prompt_id"], sort=False)["kl_nats"].mean()  # prompt means
    strata = [means[c].to_numpy() for c in prompts["category"].unique()]
    kl = prompts["kl_nats"]

    def overall(column: str) -> float:
        per_prompt = prompts.groupby(["category", "prompt_id"], sort=False)[column].mean()
        return float(mean_of_means(*[per_prompt[c].to_numpy() for c in prompts["category"].unique()]))

    intervals = dict(zip(prompts["category"].unique(), category_intervals(strata), strict=True))
    by_category: dict[str, CategoryDivergence] = {}
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
        "kl_nats": {
            **stratified_mean(strata),
            "median": float(kl.quantile(0.5)),
            "p90": float(kl.quantile(0.9)),
            "p99": float(kl.quantile(0.99)),
            "p99_9": float(kl.quantile(0.999)),
            "max": float(kl.max()),
        },
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
