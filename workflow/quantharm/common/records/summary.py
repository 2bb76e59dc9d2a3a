"""summary.json: every figure of a model's cells, a row a cell. Differences are from the baseline, pair by pair."""

from typing import TypedDict

from quantharm.common.left_out import LeftOut
from quantharm.common.records.divergence import DepthBin
from quantharm.common.records.parts import HowComputedOrNull, Interval, Sealed
from quantharm.common.records.tasks import AllTasks, OneTask


class PairedPerplexity(TypedDict):
    perplexity_change_percent: float  # over the same windows
    perplexity_change_percent_ci95: Interval | None


class AnswerEndings(TypedDict):
    """Endings of the answers (common/answers.py); `added`: share minus the baseline's over the same prompts."""

    answers_looping: int
    answers_looping_share_ci95: Interval | None
    answers_looping_added_share: float
    answers_looping_added_share_ci95: Interval | None
    loop_start_token_median: float | None  # null where no answer loops
    answers_cut_off: int  # that did not end by themselves
    answers_cut_off_share_ci95: Interval | None
    answers_cut_off_added_share: float
    answers_cut_off_added_share_ci95: Interval | None
    answers_ended_early: int  # by themselves, with less than half of the baseline's tokens
    answers_ended_early_share_ci95: Interval | None


class PairedAnswers(AnswerEndings):
    flips_right_to_wrong: int  # answers that the baseline gave right
    flips_wrong_to_right: int
    identical_responses: int
    first_difference_median: float | None  # tokens until the first that differs; null where all are the same
    first_difference_ci95: Interval | None


class IntegrityFigures(TypedDict):
    """Of integrity.json; null where it is missing or does not apply."""

    integrity_verified: bool | None
    integrity_files_verified: bool | None
    integrity_scan: str | None  # its verdict
    integrity_if_dequantized: str | None  # verdict on the cell's dequantized matrices
    integrity_if_dequantized_seen_as: str | None  # format that it was taken for
    integrity_behaves_as_the_original: bool | None
    integrity_explanation: str | None


class TreatmentFigures(TypedDict):
    """Weight noise and calibration samples; null where a cell has none."""

    noise_sigma: float | None  # in units of noise_relative_to
    noise_relative_to: str | None
    noise_codes_changed: float | None  # share of weights
    calibration_samples: int | None
    calibration_tokens: int | None
    calibration_loss_ratio: float | None  # model's loss on them ÷ on the evaluation text


class BatchFigures(TypedDict):
    """By batch size; null where memory did not suffice."""

    decode_tokens_per_second_by_batch: dict[str, float | None]  # median, of all sequences; captured where it can be
    peak_memory_bytes_by_batch: dict[str, int | None]  # weights included


class SavedFigures(TypedDict):
    """Nulls where the weights are behind an address."""

    compression: float | None  # the baseline's weight_bytes ÷ the cell's
    saved_bytes: int | None  # the baseline's weight_bytes - the cell's


class SummaryTasks(TypedDict):
    """Of tasks.json, p-values corrected; null where the model's protocol names no tasks."""

    tasks: dict[str, OneTask] | None
    tasks_overall: AllTasks | None


class SummaryRow(
    HowComputedOrNull,
    PairedPerplexity,
    PairedAnswers,
    IntegrityFigures,
    TreatmentFigures,
    BatchFigures,
    SavedFigures,
    SummaryTasks,
):
    model: str
    method: str
    synthetic: bool
    quantizer: str
    source: str
    revision: str | None
    dtype: str
    device: str
    parameters: int | None  # this and the sizes: null where the weights are behind an address
    checkpoint_bytes: int | None
    weight_bytes: int | None  # loaded
    bits_per_weight: float | None
    bits_per_weight_formula: float | None
    quantized_modules: int
    quantize_seconds: float
    perplexity_protocol: str
    text_tokens_sha256: str  # of the evaluation text's windows
    perplexity_tokens_scored: int
    perplexity: float
    perplexity_ci95: Interval | None
    bits_per_byte: float
    trace_sha256: str  # of all token ids that the baseline's store is of
    kl_nats_mean: float
    kl_nats_ci95: Interval | None
    kl_nats_median: float  # this and the next: over positions
    kl_nats_p90: float
    kl_nats_p99: float
    kl_nats_p99_9: float
    kl_nats_max: float
    kl_is_lower_bound: bool  # a server shows some tokens only: kl_nats, reverse_kl_nats and js_nats are lower bounds
    kl_lower_bound_top_tokens: int | None  # of the next
    kl_lower_bound_nats_mean: float | None  # mean KL by the most probable tokens of a position alone
    reverse_kl_nats_mean: float
    js_nats_mean: float
    top1_agreement: float
    delta_p_rms: float
    text_kl_nats_mean: float | None
    text_log_perplexity_ratio: float | None
    kl_nats_by_category: dict[str, float]
    kl_nats_by_depth: list[DepthBin] | None
    prompt_tokens_sha256: str | None  # of all prompts' token ids
    max_new_tokens: int  # of the longest answer
    prompts: int
    succeeded: int
    judged: int
    correct: int
    seconds_mean: float  # a prompt
    seconds_change_percent: float
    time_to_first_token_seconds_mean: float
    new_tokens_mean: float
    tokens_per_second: float
    decoding: str  # of the prompts: captured or eager
    seconds_mean_by_category: dict[str, float]
    new_tokens_mean_by_category: dict[str, float]
    succeeded_by_category: dict[str, float]  # share of the prompts
    kv_cache_bytes_per_token: float | None  # null where it was not measured
    benchmark_prompt_tokens: int
    benchmark_new_tokens: int
    prefill_seconds_median: float
    prefill_seconds_ci95: Interval | None
    decode_tokens_per_second_median: float  # eager
    decode_tokens_per_second_ci95: Interval | None
    captured_decode_tokens_per_second_median: float | None
    captured_decode_tokens_per_second_ci95: Interval | None
    decode_speed_relative: float  # eager, ÷ the baseline's
    memory_allocated_bytes: int | None
    memory_reserved_bytes: int | None
    memory_peak_bytes: int | None
    checks_failed: list[str]
    git_commit: str | None
    finished: str  # ISO 8601, UTC


class SummaryRecord(Sealed):
    cells: list[SummaryRow]  # the baseline first
    left_out: list[LeftOut]  # cells that could not be finished
