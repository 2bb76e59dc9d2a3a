"""Figures of a cell's divergence from those of its positions: prompt mean → category mean → mean of categories."""

import numpy
import pandas

from quantharm.common.constants import TEXT_CATEGORY
from quantharm.common.errors import UserError
from quantharm.common.prompt_means import by_category, prompt_means
from quantharm.common.records.divergence import CategoryDivergence, DivergenceFigures, LowerBound
from quantharm.common.records.perplexity import TextFigures
from quantharm.common.statistics import category_intervals, mean_of_means, stratified_mean
from quantharm.scoring.depth import kl_by_depth
from quantharm.scoring.lower_bound import TOP_TOKENS

LEAST_KL = 1e-4  # nats; where the mean KL is smaller, the bound's rounding is no small share of it
MOST_NEGATIVE_KL = -1e-6  # nats, by rounding; a lower value is an error


def check_values(rows: pandas.DataFrame, cell: str) -> None:
    """Raises UserError for a divergence that is not finite or is below zero by more than rounding."""
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


def lower_bound_of(prompts: pandas.DataFrame, kl: float, shown: int | None) -> LowerBound:
    """The lower bound on the mean KL `kl` (nats) from the most probable tokens alone (scoring.lower_bound).

    shown: tokens that a server shows of each position, so that `kl` is the bound itself; None where all are known.
    """
    bound = mean_of_means(*by_category(prompt_means(prompts, "kl_lower_bound_nats")))
    known = shown is None and kl > LEAST_KL
    return {
        "top_tokens": TOP_TOKENS if shown is None else shown,
        "kl_nats_mean": float(bound),
        "missed_share": max(0.0, 1 - bound / kl) if known else None,
    }


def summarise(prompts: pandas.DataFrame, text: TextFigures | None = None) -> DivergenceFigures:
    """Figures of divergence.json over the prompt categories.

    prompts: a row a position, as in divergence.parquet. text: perplexity.json, whose figures of natural text are
    repeated beside those of the categories.
    """
    strata, kl = by_category(prompt_means(prompts)), prompts["kl_nats"]

    def overall(column: str) -> float:
        return float(mean_of_means(*by_category(prompt_means(prompts, column))))

    categories: dict[str, CategoryDivergence] = {}
    intervals = category_intervals(strata)
    positions_of = prompts.groupby("category", sort=False)
    for (category, positions), means, ci95 in zip(positions_of, strata, intervals, strict=True):
        categories[category] = {
            "kl_nats_mean": float(means.mean()),
            "ci95": ci95,
            "top1_agreement": float(positions["top1_agrees"].mean()),
            "prompts": len(means),
            "positions": len(positions),
        }
    of_text, kl_of_text = (text["text"], text["kl_nats"]) if text else (None, None)
    if of_text and kl_of_text:
        categories[TEXT_CATEGORY] = {
            "kl_nats_mean": of_text["kl_nats_mean"],
            "ci95": kl_of_text["ci95"],
            "top1_agreement": of_text["top1_agreement"],
            "prompts": of_text["windows"],
            "positions": of_text["positions"],
        }
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
        "by_category": categories,
        "by_depth": kl_by_depth(prompts),
        "positions": len(prompts),
        "text": of_text,
    }
