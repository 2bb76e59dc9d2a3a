"""Divergence on the evaluation text: of each window, of all windows, by position and by the baseline's confidence.

Slices of positions are added one at a time. Each position keeps two float32 numbers, its KL and its Δp, for their
quantiles; all else is a sum a window. Intervals are taken over windows, since positions within one are dependent.
"""

import math

import numpy
import pandas

from quantharm.common.errors import UserError
from quantharm.common.files import finite_or_none
from quantharm.common.ratios import weighted_mean_interval
from quantharm.common.records.perplexity import KlOfBin, TextFigures
from quantharm.common.statistics import Bounds, stratified_mean
from quantharm.scoring.divergence_figures import MOST_NEGATIVE_KL

MEANS = ("kl_nats", "reverse_kl_nats", "js_nats", "delta_p", "delta_nll_nats", "top1_agrees")
NOT_COMPARED: TextFigures = {  # of a cell that met no store
    "kl_nats": None,
    "reverse_kl_nats_mean": None,
    "js_nats_mean": None,
    "top1_agreement": None,
    "top1_agreement_ci95": None,
    "delta_p": None,
    "kl_by_position": None,
    "kl_by_baseline_top1_p": None,
    "text": None,
}
SHARES = (0, 0.001, 0.01, 0.5, 0.9, 0.95, 0.99, 0.999, 1)  # of the quantiles that are given
CONFIDENCE_EDGES = numpy.arange(11) / 10  # of the baseline's probability of its own first choice


def position_edges(targets: int) -> numpy.ndarray:
    """Edges of the bins of positions 1 … targets: 1, 2, 4, … and targets + 1."""
    return numpy.unique([*(2**k for k in range(targets.bit_length())), targets + 1])


class TextDivergence:
    """Sums over the text's windows, each of the same number of targets."""

    def __init__(self, windows: int, targets: int):
        self.targets = targets
        self.kl: numpy.ndarray = numpy.zeros((windows, targets), numpy.float32)
        self.delta_p: numpy.ndarray = numpy.zeros((windows, targets), numpy.float32)
        self.sums = {name: numpy.zeros(windows) for name in (*MEANS, "delta_p²", "delta_nll²", "delta_nll⁴")}
        self.edges = {"position": position_edges(targets), "baseline_top1_p": CONFIDENCE_EDGES}
        bins = {name: (windows, len(edges) - 1) for name, edges in self.edges.items()}
        self.bin_sums = {name: numpy.zeros(shape) for name, shape in bins.items()}  # of KL
        self.bin_counts = {name: numpy.zeros(shape) for name, shape in bins.items()}

    def add(self, window: int, position: numpy.ndarray, measures: dict[str, numpy.ndarray]) -> None:
        """Adds n positions of a window.

        position: [n], 1 for the window's first target; measures: {name: [n]} of scoring.kl_divergence.divergences.
        """
        kl, delta_p, delta_nll = (measures[name] for name in ("kl_nats", "delta_p", "delta_nll_nats"))
        self.kl[window, position - 1], self.delta_p[window, position - 1] = kl, delta_p
        summed = measures | {"delta_p²": delta_p**2, "delta_nll²": delta_nll**2, "delta_nll⁴": delta_nll**4}
        for name, total in self.sums.items():
            total[window] += summed[name].sum()
        for name, values in (("position", position), ("baseline_top1_p", measures["baseline_top1_p"])):
            bins = numpy.clip(numpy.searchsorted(self.edges[name], values, side="right") - 1, 0, None)
            bins = numpy.minimum(bins, len(self.edges[name]) - 2)  # the last bin holds a probability of 1
            numpy.add.at(self.bin_sums[name][window], bins, kl)
            numpy.add.at(self.bin_counts[name][window], bins, 1)

    def check(self, cell: str) -> None:
        """Raises UserError for a KL that is not finite or is below zero by more than rounding."""
        bad = ~numpy.isfinite(self.kl)
        if bad.any():
            window, target = (int(i[0]) for i in bad.nonzero())
            raise UserError(
                f"{cell}: {int(bad.sum())} of {bad.size} tokens have a NaN or infinite divergence from the baseline, "
                f"the first in window {window} at {target + 1}; the checkpoint gives logits that are not finite"
            )
        if self.kl.min() < MOST_NEGATIVE_KL:
            raise UserError(
                f"{cell}: a KL divergence of {self.kl.min():.2e} nats on the text, below zero by more than rounding; "
                "report this"
            )

    def rows(self) -> pandas.DataFrame:
        """A row a window, means over its targets; top1_agreement is a share."""
        means = {f"{name}_mean": self.sums[name] / self.targets for name in MEANS if name != "top1_agrees"}
        return pandas.DataFrame(
            means
            | {
                "kl_nats_max": self.kl.max(1).astype(float),
                "delta_p_rms": numpy.sqrt(self.sums["delta_p²"] / self.targets),
                "top1_agreement": self.sums["top1_agrees"] / self.targets,
            }
        )

    def figures(self) -> TextFigures:
        """The figures for perplexity.json; quantiles are over positions, intervals over windows."""
        windows, positions = len(self.kl), self.kl.size
        per_window = {name: total / self.targets for name, total in self.sums.items()}
        means = {name: float(values.mean()) for name, values in per_window.items()}
        squares = standard_error(per_window["delta_nll²"], means["delta_nll⁴"] - means["delta_nll²"] ** 2, positions)
        ratio_error = standard_error(
            per_window["delta_nll_nats"], means["delta_nll²"] - means["delta_nll_nats"] ** 2, positions
        )
        kl, delta_p = quantiles(self.kl), quantiles(self.delta_p)
        return {
            "kl_nats": {
                **stratified_mean([per_window["kl_nats"]]),
                "median": kl[0.5],
                "p90": kl[0.9],
                "p95": kl[0.95],
                "p99": kl[0.99],
                "p99_9": kl[0.999],
                "max": kl[1],
            },
            "reverse_kl_nats_mean": means["reverse_kl_nats"],
            "js_nats_mean": means["js_nats"],
            "top1_agreement": means["top1_agrees"],
            "top1_agreement_ci95": self.interval("top1_agrees", least=0.0, most=1.0),
            "delta_p": {
                "mean": means["delta_p"],
                "ci95": self.interval("delta_p"),
                "rms": math.sqrt(means["delta_p²"]),
                "min": delta_p[0],
                "p0_1": delta_p[0.001],
                "p1": delta_p[0.01],
                "median": delta_p[0.5],
                "p99": delta_p[0.99],
                "p99_9": delta_p[0.999],
                "max": delta_p[1],
            },
            "kl_by_position": self.binned("position"),
            "kl_by_baseline_top1_p": self.binned("baseline_top1_p"),
            "text": {
                "windows": windows,
                "positions": positions,
                "kl_nats_mean": means["kl_nats"],
                "log_perplexity_ratio": means["delta_nll_nats"],
                "log_perplexity_ratio_ci95": self.interval("delta_nll_nats"),
                "log_perplexity_ratio_standard_error": finite_or_none(ratio_error),
                "squared_delta_nll_mean": means["delta_nll²"],
                "squared_delta_nll_standard_error": finite_or_none(squares),
                "top1_agreement": means["top1_agrees"],
            },
        }

    def interval(self, name: str, least: float = -math.inf, most: float = math.inf) -> Bounds:
        """95 % interval of a measure's mean over positions, cut at `least` and `most`; None for too few windows."""
        bounds = weighted_mean_interval(self.sums[name], numpy.full(len(self.kl), self.targets))
        return None if bounds is None else [max(least, bounds[0]), min(most, bounds[1])]

    def binned(self, name: str) -> list[KlOfBin]:
        """Mean KL in nats of each bin that is not empty; `low` belongs to a bin, `high` to the next."""
        edges = self.edges[name]
        bins: list[KlOfBin] = []
        for k in range(len(edges) - 1):
            sums, counts = self.bin_sums[name][:, k], self.bin_counts[name][:, k]
            nonempty = counts > 0  # windows
            if not nonempty.any():
                continue
            bounds = weighted_mean_interval(sums[nonempty], counts[nonempty])
            bins.append(
                {
                    "low": float(edges[k]),
                    "high": float(edges[k + 1]),
                    "positions": int(counts.sum()),
                    "kl_nats_mean": float(sums.sum() / counts.sum()),
                    "ci95": None if bounds is None else [max(0.0, bounds[0]), bounds[1]],
                }
            )
        return bins


def quantiles(values: numpy.ndarray) -> dict[float, float]:
    """{share: the value that this share of the positions does not exceed}."""
    return dict(zip(SHARES, map(float, numpy.quantile(values, SHARES)), strict=True))


def standard_error(window_means: numpy.ndarray, variance: float, positions: int) -> float:
    """Standard error of the mean over all positions; variance: of the positions.

    The larger of two estimates: from the spread of the windows, and from positions taken as independent. Few windows
    alone say little of their spread.
    """
    independent = math.sqrt(max(0.0, variance) / (positions - 1)) if positions > 1 else math.nan
    windows = len(window_means)
    between = float(window_means.std(ddof=1)) / math.sqrt(windows) if windows > 1 else 0.0
    return max(independent, between)
