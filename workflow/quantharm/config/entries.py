"""The types of a complete configuration, a TypedDict a section. config.schema.yaml describes each key."""

from collections.abc import Mapping
from typing import Literal, NotRequired, TypedDict

from quantharm.common.records.quantization import Settings

Named = Literal["models", "methods", "protocols", "texts"]  # the sections whose entries other sections name
Study = Literal["defense", "calibration_study"]  # the sections that choose models and methods of their own


class Evaluate(TypedDict):
    """`evaluate:`, the default run."""

    models: list[str]
    methods: list[str]


class Shape(TypedDict):
    """The source of a model of random weights."""

    architecture: str
    seed: int


class GivenTask(TypedDict):
    """A task with options of its own in place of its protocol's."""

    task: str
    few_shot: NotRequired[int | None]
    limit: NotRequired[int | None]
    metric: NotRequired[str | None]


class ModelEntry(TypedDict):
    """An entry under `models`."""

    source: str | Shape
    revision: str | None
    protocol: str
    tasks: list[str | GivenTask] | None
    dtype: str
    gpus: int
    billion_parameters: float | None
    trust_remote_code: bool
    allow_pickle: bool
    signature: str | None
    public_key: str | None


class TaskOptions(TypedDict):
    """`task_options:` of a protocol."""

    few_shot: int | None
    limit: int | None
    metric: str | None
    seed: int
    chat_template: bool
    answer_tokens: int | None
    folder: str | None


class BenchmarkOptions(TypedDict):
    """`benchmark:` of a protocol."""

    prompt_tokens: int
    prefill_tokens: list[int]
    batch_sizes: list[int]
    compile: bool
    new_tokens: int
    repetitions: int
    seconds: float


class ProtocolEntry(TypedDict):
    """An entry under `protocols`."""

    text: str
    window_tokens: int
    bos_every_window: bool | Literal["auto"]
    windows: int | None
    text_windows: int | None
    stored_logits: str
    prompts: str
    prompts_per_category: int | None
    max_new_tokens: int
    chat_template: Literal["auto", "never", "required"]
    thinking: bool
    template_date: str
    system_prompt: str | None
    tasks: list[str | GivenTask]
    task_options: TaskOptions
    benchmark: BenchmarkOptions


class TextEntry(TypedDict):
    """An entry under `texts`."""

    path: NotRequired[str]  # either this or `dataset`
    dataset: NotRequired[str]
    name: NotRequired[str]
    split: str
    column: str
    revision: NotRequired[str]  # with `dataset`


class NoiseStudy(TypedDict):
    """`defense:`."""

    models: list[str] | None
    methods: list[str] | None
    sigmas: list[float]
    seed: int


class CalibrationStudy(TypedDict):
    """`calibration_study:`."""

    models: list[str] | None
    methods: list[str] | None
    texts: dict[str, str]
    samples: int
    seeds: list[int]


class Monitor(TypedDict):
    """`monitor:`."""

    model: str  # where the file has null, of the default run, as `method`
    method: str
    checkpoint: str | None
    signature: str | None
    public_key: str | None
    per_category: int
    baseline_runs: int
    weight: float
    width: float


class Limits(TypedDict, total=False):
    """What a cell may cost; a key that is left out or null limits nothing."""

    kl_nats: float | None
    category_kl_nats: float | dict[str, float | None] | None
    text_kl_nats: float | None
    perplexity_change_percent: float | None
    recovery: float | None
    flips: float | None
    loops: float | None
    weight_bytes: float | None
    checkpoint_bytes: float | None
    compression: float | None
    decode_rate_ratio: float | None
    checks: bool | None
    integrity: bool | None


class Worse(TypedDict):
    """`worse:` of the budget, against an earlier run."""

    kl_nats: float | None
    perplexity_change_percent: float | None
    recovery: float | None
    weight_bytes: float | None
    decode_rate_ratio: float | None


class Budget(Limits):
    """`budget:`."""

    undecided: Literal["pass", "fail"]
    not_measured: Literal["pass", "fail"]
    prefer: Literal["smallest", "closest", "fastest"]
    models: dict[str, Limits]
    methods: dict[str, Limits]
    against: str | None
    worse: Worse


class Configuration(TypedDict):
    """The whole file."""

    evaluate: Evaluate
    models: dict[str, ModelEntry]
    methods: dict[str, Settings]  # a `quantizer` and its settings; `models` and `description` where they are given
    protocols: dict[str, ProtocolEntry]
    texts: dict[str, TextEntry]
    report: Mapping[str, object]  # reporting/thresholds.py has its types
    defense: NoiseStudy
    calibration_study: CalibrationStudy
    monitor: Monitor
    budget: Budget
    calibration: str
    device: Literal["auto", "cpu", "cuda"]
    threads: int
    on_failed_check: Literal["stop", "report"]
    warm_start: bool
    python: str | None
