"""generation.json: answers to the prompt suite, and the benchmark of prefill and decode."""

from typing import NotRequired, TypedDict

from quantharm.common.records.parts import CellNames, Finished, Memory, Repeated


class Answers(TypedDict):
    """Of the suite, or of one category of it."""

    prompts: int
    succeeded: int  # answers of at least one token, finite logits, not degenerate
    seconds_mean: float  # a prompt
    time_to_first_token_seconds_mean: float
    new_tokens_mean: float  # a prompt
    tokens_per_second: float  # all new tokens ÷ all seconds
    degenerate: int  # answers that end in a short cycle
    judged: int  # prompts whose answer a program can judge
    correct: int  # of those


class Asked(TypedDict):
    """Settings that decide the token ids of the prompts."""

    chat_template: str  # auto, required or never
    thinking: bool  # whether templates that know a switch for it have it on
    template_date: str  # today's date, as a template is told
    system_prompt: str | None
    thinking_switch: bool  # whether the template has one
    prompt_tokens_sha256: str  # of all prompts' token ids


class GenerationRow(TypedDict):
    """A row of generation.parquet: the answer to one prompt."""

    prompt_id: str
    category: str
    prompt_token_ids: list[int]
    token_ids: list[int]  # of the answer
    text: str  # without special tokens
    decoding: str  # captured or eager
    new_tokens: int
    seconds: float
    time_to_first_token_seconds: float
    stop_reason: str
    finite: bool  # no logit was NaN or infinite
    degenerate: bool  # it ends in a short cycle
    succeeded: bool
    correct: bool | None  # null where a program cannot tell


class CapturedCheck(TypedDict):
    """Captured decoding against uncaptured and eager decoding, step by step."""

    steps: int
    tokens: int  # steps × sequences
    same_tokens: int  # as uncaptured
    same_tokens_but_ties: int  # choices between logits nearer than rounding not counted against it
    kl_nats_max: float  # from uncaptured, at any step
    kl_nats_max_of_two_uncaptured: float  # between two uncaptured runs
    logit_difference_max: float
    eager_same_tokens: int
    eager_kl_nats_max: float
    eager_kl_nats_max_of_two_kernels: float | None  # of attention, in eager decoding; null where it was not needed
    kl_nats_limit: float
    eager_kl_nats_limit: float


class PromptsRead(TypedDict):
    """How the prompts of captured answers were read, and what the check of that found."""

    captured: int  # prompts that a graph read; the others eagerly
    reason: str | None  # why no graph did where one could have served several prompts
    kl_nats_max: float | None  # between eager decoding and what follows a prompt read by a graph


class AnswersCheck(TypedDict):
    """Captured answers against one ordinary forward pass over each."""

    tokens: int
    same_tokens: int  # that the forward pass chooses as well
    same_tokens_but_ties: int  # choices between logits nearer than rounding or noise not counted against it
    logit_noise: float  # difference of a choice's lead between eager decoding and one pass, on one answer
    prompts_read: NotRequired[PromptsRead]


class Captured(TypedDict):
    """Decoding as a CUDA graph; `reason` and no rate where there is none."""

    reason: NotRequired[str | None]
    decode_tokens_per_second: NotRequired[Repeated]
    repetitions: NotRequired[int]
    joules_per_new_token: NotRequired[float | None]
    capture_seconds: NotRequired[float]  # the check included
    check: NotRequired[CapturedCheck]


class FastestCaptured(Captured):
    compiled: bool  # by torch.compile, before it was captured
    other: NotRequired["FastestCaptured"]  # the slower of the two, where both were measured


class Eager(TypedDict):
    """Prefill and decode as a Python loop runs them."""

    repetitions: int
    processor_wait_share: float | None  # of the time in which its threads were ready: others had the processors
    prefill_seconds: Repeated
    decode_tokens_per_second: Repeated
    joules_per_new_token: float | None  # prefill included, for `new_tokens` tokens; null without a meter


class PrefillRecord(TypedDict):
    prompt_tokens: int
    seconds: Repeated
    joules: float | None  # of one prefill; null without a meter


class BatchFigures(TypedDict):
    """Of several sequences at once; null where memory did not suffice."""

    decoding: str | None  # captured or eager
    decoding_reason: str | None  # why it is not captured
    prefill_seconds: Repeated | None
    decode_tokens_per_second: Repeated | None  # of all sequences together
    peak_memory_bytes: int | None  # weights included


class BatchRecord(BatchFigures):
    batch_size: int  # sequences
    prompt_tokens: int  # of each
    reason: str | None  # why there are no figures


class CopyBandwidth(TypedDict):
    """Of copies within the device's memory."""

    copy_bytes: int  # that each copy moved
    copy_bytes_per_second: float  # read plus written


class Roofline(CopyBandwidth):
    """Bytes that decoding moves, beside those that the device's memory can move."""

    kv_cache_bytes_per_token: NotRequired[float]  # keys and values, at the benchmark's prompt; scales included
    weight_bytes_per_token: int
    bytes_per_token: int  # weights, KV cache and states
    eager_bytes_per_second: float | None
    eager_share_of_copy_bandwidth: float | None
    captured_bytes_per_second: float | None  # null where nothing was captured
    captured_share_of_copy_bandwidth: float | None


class BenchmarkRecord(Eager):
    prompt_tokens: int
    new_tokens: int  # exactly so many
    eager_new_tokens: NotRequired[int]  # fewer beside a captured rate
    prefill: list[PrefillRecord]  # at further lengths
    captured: FastestCaptured
    batches: list[BatchRecord]
    host_wait_share: float | None  # of eager decoding, in which the GPU waits for Python
    roofline: Roofline | None  # null of a model behind an address, as is memory
    energy_reason: str | None  # why there is no energy


class GenerationRecord(CellNames, Asked, Answers, Finished):
    suite: str  # file of the prompts
    suite_sha256: str
    prompts_per_category: int | None  # null: all
    max_new_tokens: int  # of the longest answer
    decoding: str  # of the suite: captured or eager
    decoding_reason: str | None  # why it is not captured
    decoding_check: AnswersCheck | None  # of captured answers
    not_finite: int  # prompts that met a NaN or infinite logit
    by_category: dict[str, Answers]
    benchmark: BenchmarkRecord
    model_load_seconds: float
    memory: Memory | None  # of the answers
