"""perplexity.json: how well a cell predicts the evaluation text."""

from quantharm.common.records.parts import CellNames, Finished, Interval


class PerplexityRecord(CellNames, Finished):
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
    seconds: float  # of forward passes and scoring
    tokens_per_second: float
    peak_memory_bytes: int
