"""noise_sweep.json and calibration_study.json: studies beside the default run, a row a cell."""

from typing import TypedDict

from quantharm.common.records.parts import Interval, Sealed


class QuantizedFigures(TypedDict):
    """A cell against the baseline."""

    quantized_perplexity_change_percent: float
    quantized_perplexity_change_percent_ci95: Interval | None
    quantized_kl_nats_mean: float
    quantized_kl_nats_ci95: Interval | None
    quantized_top1_agreement: float


class AloneFigures(TypedDict):
    """The noise alone, in 16 bits, against the baseline."""

    alone_perplexity_change_percent: float
    alone_perplexity_change_percent_ci95: Interval | None
    alone_kl_nats_mean: float
    alone_kl_nats_ci95: Interval | None
    alone_top1_agreement: float


class NoiseRow(AloneFigures, QuantizedFigures):
    """A method after noise, and the noise alone."""

    method: str
    sigma_half_widths: float  # in half steps of the method's grid
    noise_rms: float
    codes_changed: float | None  # share of weights with another code than without noise


class NoiseSweepRecord(Sealed):
    model: str
    rows: list[NoiseRow]


class NoiseCells(TypedDict):
    """The two cells of a method and a size of the noise, as the configuration lists them."""

    method: str
    sigma: float  # in half steps of the method's grid
    alone: str  # derived method with the noise in 16 bits
    quantized: str  # derived method with the same noise before the method's rounding


class CalibrationCell(TypedDict):
    """A method with other calibration samples, as the configuration lists it."""

    method: str
    text: str | None  # name in the config; null of bad samples
    seed: int
    corruption: str | None  # of bad samples
    cell: str  # name of the derived method


class CalibrationRow(CalibrationCell, QuantizedFigures):
    samples_reached: int
    tokens_reached: int
    duplicate_samples: int
    distinct_tokens: int
    overlaps: int  # word sequences shared with the evaluation text or the prompts
    nll_ratio: float  # model's loss on the samples ÷ on the evaluation text
    faults: list[str]  # that the check `calibration` finds


class Spread(TypedDict):
    """Of mean KL in nats over the honest choices."""

    cells: int
    mean: float
    standard_deviation: float
    range: float
    within_texts: float  # mean over texts of the standard deviation over seeds


class Comparison(TypedDict):
    method: str
    other: str
    difference_nats: float  # of mean KL
    ranked: bool  # whether it is larger than the range


class CalibrationStudyRecord(Sealed):
    model: str
    rows: list[CalibrationRow]
    spread_kl_nats: dict[str, Spread]  # {method: …}
    comparisons: list[Comparison]
    kl_nats_mean: dict[str, float]  # {method of the default run: …}
