"""perplexity.json: how well a cell predicts the evaluation text, and how far it is from the baseline there."""

from typing import NotRequired, TypedDict

from quantharm.common.records.divergence import KlNats, TextDivergence
from quantharm.common.records.parts import CellNames, Finished, Interval


class TextKlNats(KlNats):
    """KL(baseline ‖ method) in nats: mean of all positions, its interval over windows, quantiles over positions."""

    p95: float


class TextDeltaP(TypedDict):
    """Change of the probability of the text's token, over positions."""

    mean: float
    ci95: Interval | None  # over windows
    rms: float
    min: float
    p0_1: float
    p1: float
    median: float
    p99: float
    p99_9: float
    max: float


class KlOfBin(TypedDict):
    """Positions from `low` to below `high`."""

    low: float
    high: float
    positions: int
    kl_nats_mean: float
    ci95: Interval | None  # over windows


class TextFigures(TypedDict):
    """Divergence from the baseline over the windows that its store has; null where it has none."""

    kl_nats: TextKlNats | None
    reverse_kl_nats_mean: float | None  # KL(method ‖ baseline)
    js_nats_mean: float | None  # Jensen-Shannon divergence
    top1_agreement: float | None  # share of positions at which both models choose one token
    top1_agreement_ci95: Interval | None  # over windows
    delta_p: TextDeltaP | None
    kl_by_position: list[KlOfBin] | None  # in the window, 1 is the first that is predicted
    kl_by_baseline_top1_p: list[KlOfBin] | None  # by the baseline's probability of its own first choice
    text: TextDivergence | None


class PerplexityRecord(CellNames, TextFigures, Finished):
    protocol: str  # concat-2048, for one; figures of two protocols are never compared
    dataset: str  # the text's file
    dataset_sha256: str
    tokens_sha256: str  # of all windows' token ids
    tokens_scored: int
    bytes_scored: float  # of the text that they are; tokens that share a letter share its bytes
    windows: int
    nll_mean_nats: float  # -ln p, mean over tokens
    perplexity: float  # exp(nll_mean_nats)
    perplexity_ci95: Interval | None  # over windows
    bits_per_byte: float
    seconds: float  # of forward passes and scoring, in the process that finished
    # Of the windows that this process asked for; null where a server had answered all for one that was stopped.
    tokens_per_second: float | None
    kl_is_lower_bound: NotRequired[bool]  # a server shows some tokens only: KL, reverse KL and JS are lower bounds
    peak_memory_bytes: int | None  # null where the model is behind an address
