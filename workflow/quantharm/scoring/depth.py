"""KL divergence by depth: the number of an answer's tokens before the predicted one."""

import pandas

from quantharm.common.constants import TEXT_CATEGORY
from quantharm.common.records.divergence import DepthBin
from quantharm.common.statistics import stratified_mean

FIRST_EDGE = 16  # tokens; each bin after the first is as long as all before it


def kl_by_depth(rows: pandas.DataFrame) -> list[DepthBin]:
    """Mean KL in nats and agreement of the first choices for answers' tokens 0 to 15, 16 to 31, 32 to 63, …

    rows: a row a position with prompt_id, category, position, kl_nats, top1_agrees; those of the text are left out.
    """
    answers = rows[rows["category"] != TEXT_CATEGORY]
    depth = answers["position"] - answers.groupby("prompt_id")["position"].transform("min")
    bins: list[DepthBin] = []
    low, high = 0, FIRST_EDGE
    while len(inside := answers[depth >= low]):
        inside = inside[depth[inside.index] < high]
        means = inside.groupby(["category", "prompt_id"], sort=False)[["kl_nats", "top1_agrees"]].mean()
        strata = [part.to_numpy() for _, part in means["kl_nats"].groupby(level="category", sort=False)]
        mean = stratified_mean(strata)
        bins.append(
            DepthBin(
                from_tokens=low,
                to_tokens=high,
                kl_nats_mean=mean["mean"],
                ci95=mean["ci95"],
                top1_agreement=float(means["top1_agrees"].groupby(level="category").mean().mean()),
                prompts=len(means),
                positions=len(inside),
            )
        )
        low, high = high, 2 * high
    return bins
