"""divergence.json: how far a cell's next-token distributions lie from the baseline's, on the trace and on the text."""

from typing import NotRequired, TypedDict

from quantharm.common.records.logits import HardwareFloor
from quantharm.common.records.parts import CellNames, Finished, HowComputedOrNull, Interval, MeanWithInterval

Ranked = list[list[int | float]]  # [token id, probability], the most probable first


class KlNats(MeanWithInterval):
    """KL(baseline ‖ method) in nats: mean of the category means, and quantiles over positions of the trace."""

    median: float
    p90: float
    p99: float
    p99_9: float
    max: float


class DeltaP(TypedDict):
    """Change of the probability of the trace's token, over positions."""

    mean: float
    rms: float


class CategoryDivergence(TypedDict):
    kl_nats_mean: float  # of the prompts' means
    ci95: Interval | None  # over prompts
    top1_agreement: float  # share of positions at which both models choose one token
    prompts: int  # windows, where the category is `text`
    positions: int


class TextDivergence(TypedDict):
    """Of the windows of the evaluation text in the store."""

    windows: int
    positions: int
    kl_nats_mean: float
    log_perplexity_ratio: float  # ln(perplexity of the method ÷ of the baseline) on these windows
    log_perplexity_ratio_ci95: Interval | None  # over windows
    log_perplexity_ratio_standard_error: float | None  # the larger one of windows and of single positions
    squared_delta_nll_mean: float  # nats²
    squared_delta_nll_standard_error: float | None
    top1_agreement: float


class WorstPosition(TypedDict):
    """A position at which the method is far from the baseline."""

    prompt_id: str
    category: str
    position: int  # of the predicted token in the whole sequence
    kl_nats: float
    target_id: int  # the trace's token
    baseline_top5: Ranked
    method_top5: Ranked


class WorstPositionInWords(WorstPosition):
    context: str  # the text before
    context_is_cut: bool
    target: str  # the text of the trace's token
    token_texts: dict[str, str]  # {token id: text} of the tokens above


class DepthBin(TypedDict):
    """Positions with at least `from_tokens` and fewer than `to_tokens` of the answer before them."""

    from_tokens: int
    to_tokens: int
    kl_nats_mean: float  # of category means of prompt means
    ci95: Interval | None  # over prompts
    top1_agreement: float
    prompts: int  # whose answers are that long: not the same ones in every bin
    positions: int


class DivergenceFigures(TypedDict):
    kl_nats: KlNats
    reverse_kl_nats_mean: float  # KL(method ‖ baseline)
    js_nats_mean: float  # Jensen-Shannon divergence
    top1_agreement: float  # share of positions at which both models choose one token
    delta_p: DeltaP
    by_category: dict[str, CategoryDivergence]
    by_depth: NotRequired[list[DepthBin]]  # earlier versions had none
    positions: int  # of the trace
    text: TextDivergence | None  # as in perplexity.json; null where the store has no windows


class LowerBound(TypedDict):
    """What the K most probable tokens, and the one that follows, tell of the mean KL; all others are one bucket."""

    top_tokens: int  # K
    kl_nats_mean: float  # as kl_nats.mean
    missed_share: float | None  # of kl_nats.mean; null where that is a bound itself, or next to nothing


class StoreShown(HowComputedOrNull):
    """Metadata of the store that the cell was compared with; null where an older store lacks them."""

    stored: str | None  # hidden_states or log_probabilities
    protocol: str | None
    device: str | None
    dtype: str | None
    versions: dict[str, str] | None
    hardware_floor: HardwareFloor | None


class DivergenceRecord(CellNames, DivergenceFigures, Finished):
    worst_positions: list[WorstPositionInWords]  # the largest KL first
    trace_sha256: str  # of all token ids
    kl_is_lower_bound: NotRequired[bool]  # a server shows some tokens only: KL, reverse KL and JS are lower bounds
    kl_lower_bound: NotRequired[LowerBound]  # earlier versions had none
    store: StoreShown
    peak_memory_bytes: int | None  # null where the model is behind an address
