"""A lower bound on the divergence from the log-probabilities of a few tokens, since a server shows no more.

At each position the method's probabilities are known for its K most probable tokens and for the token that follows (the
set S), not for the rest R. All of R is put into one bucket:

    KL(p ‖ q) ≥ Σ_{v in S} p_v ln(p_v / q_v) + p_R ln(p_R / q_R),   p_R = Σ_{v in R} p_v,   q_R = Σ_{v in R} q_v

This is the log-sum inequality. For v in R let x_v = p_v / q_v, with weights w_v = q_v / q_R, which sum to 1. f(x) =
x ln x is convex, so by Jensen Σ w_v f(x_v) ≥ f(Σ w_v x_v). The left side is (1 / q_R) Σ_R p_v ln(p_v / q_v), and
Σ w_v x_v = p_R / q_R makes the right side (1 / q_R) p_R ln(p_R / q_R). Equality holds where q is proportional to p
within R; where R is empty the bound is the divergence. The same holds with p and q exchanged, and for the
Jensen-Shannon divergence, which is a mean of two KL divergences.

q_R is 1 minus the known probabilities. These are rounded, so that q_R is wrong by about ROUNDING, which is added to
both buckets. That lowers the bound: d(a, b) = a ln(a / b) - a + b is convex and homogeneous, so d(a + e, b + e) is at
most d(a, b) + d(e, e) = d(a, b), and Σ d is the divergence.
"""

import torch

TOP_TOKENS = 20  # K for cells whose whole distribution is known, to measure how much the bound misses there
ROUNDING = 1e-6  # of the sum of the known probabilities
NO_TOKEN = -1  # fills a row with fewer ids


def top_and_target(logits: torch.Tensor, targets: torch.Tensor, top_tokens: int = TOP_TOKENS) -> torch.Tensor:
    """Ids [n, K + 1] of the tokens that a server would show: the K most probable, then the target.

    logits: [n, vocabulary]; targets: [n]. A target that is among the K has NO_TOKEN in its place.
    """
    top = logits.topk(min(top_tokens, logits.shape[-1]), dim=-1).indices
    target = targets.to(top.device)[:, None]
    return torch.cat([top, target.masked_fill((top == target).any(-1, keepdim=True), NO_TOKEN)], dim=-1)


def lower_bounds(
    ln_p: torch.Tensor, ln_q: torch.Tensor, known: torch.Tensor, vocabulary: int
) -> dict[str, torch.Tensor]:
    """{kl_nats, reverse_kl_nats, js_nats}: lower bounds of the three divergences in nats, each [n] float64.

    ln_p, ln_q: [n, m] float64 log-probabilities of the baseline and of the method at the ids `known` [n, m]; entries at
    NO_TOKEN are ignored.
    """
    everything = (known != NO_TOKEN).sum(-1, keepdim=True) == vocabulary
    ln_p, ln_q = (with_bucket(entries, known, everything) for entries in (ln_p, ln_q))
    return {
        "kl_nats": relative_entropy(ln_p, ln_q),
        "reverse_kl_nats": relative_entropy(ln_q, ln_p),
        "js_nats": jensen_shannon(ln_p, ln_q),
    }


def with_bucket(entries: torch.Tensor, known: torch.Tensor, everything: torch.Tensor) -> torch.Tensor:
    """[n, m + 1]: log-probabilities of the known tokens, then of all others together, -inf where there are none."""
    of_known = entries.masked_fill(known == NO_TOKEN, -torch.inf)
    others = (1 - of_known.exp().sum(-1, keepdim=True)).clamp_min(0.0)
    return torch.cat([of_known, (others + ROUNDING).log().masked_fill(everything, -torch.inf)], dim=-1)


def relative_entropy(ln_p: torch.Tensor, ln_q: torch.Tensor) -> torch.Tensor:
    """Σ (p ln(p / q) - p + q) in nats, never negative, of log-probabilities [n, m] → [n]; entries with p = 0 give q."""
    p, q = ln_p.exp(), ln_q.exp()
    return (torch.where(p > 0, p * (ln_p - ln_q), 0.0) - p + q).sum(-1)


def jensen_shannon(ln_p: torch.Tensor, ln_q: torch.Tensor) -> torch.Tensor:
    """Jensen-Shannon divergence in nats of log-probabilities [n, m] → [n]."""
    ln_m = torch.logaddexp(ln_p, ln_q) - torch.log(torch.tensor(2.0, dtype=torch.float64))
    return (relative_entropy(ln_p, ln_m) + relative_entropy(ln_q, ln_m)) / 2
