"""The figures: is the baseline's noise floor low, were all logits finite, and does KL agree with the losses?"""

import math

from quantharm.common.constants import SELF_DIVERGENCE_LIMIT
from quantharm.common.records.checks import CheckRecord
from quantharm.common.records.divergence import DivergenceRecord
from quantharm.common.records.generation import GenerationRecord
from quantharm.forensics.checks.outcome import outcome

CONSISTENCY_LIMIT = 3.0  # KL over half the mean square of ln p - ln q on the text's tokens, at most
CONSISTENCY_LEAST = 30.0  # and at least 1 over this
CONSISTENCY_FROM = 1e-3  # nats; below, rounding contributes
CONSISTENCY_STANDARD_ERRORS = 3.0  # the mean square of few windows is rough


def check_self_divergence(baseline_divergence: DivergenceRecord) -> CheckRecord:
    """The baseline against its own store: the KL of repeating a forward pass."""
    value = baseline_divergence["kl_nats"]["mean"]
    return outcome(
        "self_divergence",
        value <= SELF_DIVERGENCE_LIMIT,
        value,
        SELF_DIVERGENCE_LIMIT,
        "mean KL in nats of the baseline against its own store: the noise floor of every divergence of this model",
    )


def check_finite(generation: GenerationRecord) -> CheckRecord:
    """Prompts with a logit that is not finite; perplexity and divergence stop at one, so their files show none."""
    value = generation["not_finite"]
    return outcome(
        "finite",
        value == 0,
        value,
        0,
        "prompts that met a NaN or infinite logit; the perplexity and divergence stages met none",
    )


def check_consistency(divergence: DivergenceRecord) -> CheckRecord:
    """On the text, mean KL against half the mean square of ln p - ln q of the text's own tokens.

    Both measure how far the model moved, one over the whole vocabulary and one on single tokens: near p,
    KL = E_p[(ln p/q)²] / 2 to second order, as for every f-divergence. The tokens need not be drawn from p: an
    overconfident model, as chat tuning makes them, meets improbable tokens more often than it expects, which makes the
    square greater, so KL may be a thirtieth of it and no more than three times it. (ln(perplexity ratio) itself would
    have to agree with KL only for text drawn from p: the built-in model sharpened threefold, in 6 bits, gives -0.038
    and KL 0.017.)
    """
    text = divergence["text"]
    if divergence.get("synthetic"):
        reason = "synthetic weights do not predict the text, so its tokens have nothing to do with KL"
        return outcome("consistency", None, None, CONSISTENCY_LIMIT, reason)
    if text is None:
        return outcome("consistency", None, None, CONSISTENCY_LIMIT, "no window of the text is in the store")
    if "squared_delta_nll_mean" not in text:
        return outcome("consistency", None, None, CONSISTENCY_LIMIT, "divergence.json is of an earlier version")
    kl, half = text["kl_nats_mean"], text["squared_delta_nll_mean"] / 2
    error = CONSISTENCY_STANDARD_ERRORS * (text["squared_delta_nll_standard_error"] or 0.0) / 2
    explanation = (
        f"on the text, mean KL is {kl:.4g} nats and half the mean square of ln p - ln q of its tokens {half:.4g} ± "
        f"{error:.2g}: KL should be no more than three times it nor less than a thirtieth (ln(perplexity ratio): "
        f"{text['log_perplexity_ratio']:.4g})"
    )
    if max(kl, half) <= CONSISTENCY_FROM:
        return outcome("consistency", None, None, CONSISTENCY_LIMIT, f"{explanation}, but both are too small to tell")
    value = kl / half if half > 0 else math.inf
    lower_bound = divergence.get("kl_is_lower_bound", False)  # it may then be too small, never too large
    agree = (lower_bound or (half - error) / CONSISTENCY_LEAST <= kl) and kl <= CONSISTENCY_LIMIT * (half + error)
    return outcome("consistency", agree, value, CONSISTENCY_LIMIT, explanation)
