"""The limits of a budget, and which of them hold for a cell.

A limit is under its key in the config's `budget:`. `budget.models.<model>` and `budget.methods.<method>` replace it key
by key, in this order; null takes a limit away.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from quantharm.config.entries import Budget
from quantharm.reporting.format import number, percent, share_to_a_tenth, size, times

LIMIT_ON_EACH_CATEGORY = "category_kl_nats"
OF_THE_BASELINE_TOO = ("checks", "integrity")


@dataclass(frozen=True)
class Kind:
    """The figure that a key of the budget limits."""

    label: str
    show: Callable[[float], str]
    at_most: bool = True  # else at least
    unit: str = ""  # after the figure, where `show` does not give it


@dataclass(frozen=True)
class Limit:
    """A bound on a figure, in the figure's own unit."""

    key: str
    subject: str | None  # a category, where the limit is on each of them
    bound: float


def whole(value: float) -> str:
    """`3`"""
    return f"{value:.0f}"


KINDS = {
    "kl_nats": Kind("mean KL", number, unit=" nats"),
    "category_kl_nats": Kind("mean KL", number, unit=" nats"),
    "text_kl_nats": Kind("mean KL on the text", number, unit=" nats"),
    "perplexity_change_percent": Kind("perplexity change", percent),
    "recovery": Kind("recovery on tasks", share_to_a_tenth, at_most=False),
    "flips": Kind("flipped task items", share_to_a_tenth),
    "loops": Kind("additional answers that loop", share_to_a_tenth),
    "weight_bytes": Kind("weights loaded", size),
    "checkpoint_bytes": Kind("checkpoint", size),
    "compression": Kind("compression", times, at_most=False),
    "decode_rate_ratio": Kind("decode rate ÷ the baseline's", times, at_most=False),
    "checks": Kind("failed checks", whole),
    "integrity": Kind("integrity findings", whole),
}
WORSE_KINDS = {
    "kl_nats": Kind("increase of mean KL since the earlier run", number, unit=" nats"),
    "perplexity_change_percent": Kind("increase of the perplexity change since the earlier run", percent),
    "recovery": Kind("loss of recovery on tasks since the earlier run", share_to_a_tenth),
    "weight_bytes": Kind("increase of weights loaded since the earlier run", share_to_a_tenth),
    "decode_rate_ratio": Kind("loss of decode rate ratio since the earlier run", share_to_a_tenth),
}


def kind_of(key: str) -> Kind:
    """`kl_nats`, or `worse.kl_nats` for the same compared with an earlier run."""
    return WORSE_KINDS[key.removeprefix("worse.")] if key.startswith("worse.") else KINDS[key]


def has_limits(budget: Budget) -> bool:
    """Whether a budget limits anything; without, there is nothing to judge."""
    entries = [budget, *budget["models"].values(), *budget["methods"].values()]
    return budget["against"] is not None or any(entry.get(key) for entry in entries for key in KINDS)


def limits_of(budget: Budget, model: str, method: str, categories: list[str], baseline: bool) -> list[Limit]:
    """The limits on a cell, in the order of KINDS; on the baseline, those on its checks and its integrity alone.

    A number for `category_kl_nats` is a limit on each of the model's `categories`.
    """
    general: Mapping[str, Any] = budget
    chosen = {key: general.get(key) for key in KINDS}
    for entry in (budget["models"].get(model, {}), budget["methods"].get(method, {})):
        chosen |= {key: value for key, value in entry.items() if key in KINDS}
    limits = []
    for key, value in chosen.items():
        if value is None or value is False or (baseline and key not in OF_THE_BASELINE_TOO):
            continue
        if key == LIMIT_ON_EACH_CATEGORY:
            each = value if isinstance(value, dict) else dict.fromkeys(categories, value)
            limits += [Limit(key, category, float(bound)) for category, bound in each.items() if bound is not None]
        else:
            limits.append(Limit(key, None, 0.0 if value is True else float(value)))
    return limits
