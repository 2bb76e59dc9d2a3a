"""The price of a saved byte: ΔPPL for each GB (or MB) saved, and one method's price against another's."""

from functools import partial
from itertools import combinations
from typing import NamedTuple

import numpy
import pandas

from quantharm.common.files import read_parquet
from quantharm.common.ratios import jackknife_interval
from quantharm.reporting.differences import Difference, is_measurable
from quantharm.reporting.format import Bounds, fixed, number, percent, signed, size_unit
from quantharm.reporting.ranking import beaten_by, front_of
from quantharm.reporting.results import Cell, Results
from quantharm.reporting.tables.columns import CHANGE, COMPRESSION, METHOD, figure, perplexity_change, text
from quantharm.reporting.tables.table import Column, Field, Table, figure_field, name_field, table_of, text_field


def trade_off_table(results: Results) -> Table:
    scale, unit = size_unit(results.baseline.weight_bytes)
    front = front_of(results)

    def saved(cell: Cell) -> float:
        return cell.saved_bytes / scale

    def price(cell: Cell) -> tuple[float | None, Bounds]:
        """The change of perplexity for each unit saved, with its interval; None where nothing was saved."""
        bounds = cell.interval(CHANGE) if cell.saved_bytes > 0 else None
        return per_saved(cell.figure(CHANGE), saved(cell)), bounds and [bound / saved(cell) for bound in bounds]

    def front_field(cell: Cell) -> Field:
        if cell.failed:
            return text_field("left out: failed checks", "failed")
        if cell.method in front:
            return text_field("yes", "pass")
        return text_field(f"no: {', '.join(beaten_by(results, cell.method))} is at most as large and measurably closer")

    def aside(cell: Cell) -> str:
        bounds = cell.interval(CHANGE)
        return "" if bounds is None or is_measurable(bounds) else "no measurable price"

    per = f"for each {unit} saved"
    columns = [
        METHOD,
        figure(f"saved_{unit.lower()}", f"Saved, {unit}", partial(fixed, decimals=3), saved),
        COMPRESSION,
        perplexity_change(),
        figure(
            f"{CHANGE}_per_{unit.lower()}",
            f"Perplexity change {per} [95\u00a0%]",
            partial(percent, decimals=3),
            price,
            aside=aside,
        ),
        figure(
            f"kl_nats_per_{unit.lower()}",
            f"KL, nats {per}",
            of=lambda cell: per_saved(cell.figure("kl_nats_mean"), saved(cell)),
        ),
    ]
    note = ""
    if not results.synthetic:  # who is on the front is a judgement of quality
        columns.append(Column("pareto", "On the Pareto front", "left", front_field))
        note = (
            "On the front: no other method of this run is at most as large and measurably closer to the baseline "
            "(paired difference in KL, corrected for the number of pairs). Methods with failed checks are left out."
        )
    return table_of(
        "trade-off",
        columns,
        [cell for cell in results.methods if not cell.served],
        note,
        f"The price of each {unit} saved",
    )


def per_saved(value: float | None, saved: float) -> float | None:
    """value for each unit saved; None when nothing was saved."""
    return None if value is None or saved <= 0 else value / saved


def window_losses(cell: Cell) -> pandas.DataFrame:
    """perplexity.parquet: window, nll_sum_nats, targets."""
    return read_parquet(cell.folder / "perplexity.parquet")


def price_ratio(first: Cell, second: Cell, baseline: Cell) -> tuple[float, list[float]] | None:
    """The ratio of the ΔPPL that `first` pays for each byte saved to what `second` pays, paired over windows.

    The interval is a jackknife's on a logarithmic scale. None unless both pay a measurable price, whichever window is
    left out, and save something: the ratio of two noises means nothing.
    """
    for cell in (first, second):
        bounds = cell.interval(CHANGE)
        if cell.saved_bytes <= 0 or bounds is None or bounds[0] <= 0:
            return None
    reference = window_losses(baseline)
    targets = reference["targets"].to_numpy(float)
    losses = [(window_losses(c)["nll_sum_nats"] - reference["nll_sum_nats"]).to_numpy() for c in (first, second)]
    over = targets.sum()

    def log_ratio(one, other, count):
        prices = [numpy.expm1(total / count) for total in (one, other)]
        return numpy.log(prices[0] / first.saved_bytes) - numpy.log(prices[1] / second.saved_bytes)

    estimate = log_ratio(losses[0].sum(), losses[1].sum(), over)
    with numpy.errstate(invalid="ignore", divide="ignore"):  # without one window a price may vanish
        one, other = (loss.sum() - loss for loss in losses)
        left_out = log_ratio(one, other, over - targets)
    if not numpy.isfinite(left_out).all():
        return None
    return float(numpy.exp(estimate)), [float(b) for b in numpy.exp(jackknife_interval(left_out, estimate, targets))]


class Pair(NamedTuple):
    """Two methods, the dearer one first; ratio: of their prices, None where there is none."""

    first: Cell
    second: Cell
    ratio: tuple[float, list[float]] | None
    difference: Difference

    def price_field(self) -> Field:
        times = self.ratio
        return figure_field(times[0], lambda v: f"{number(v)}×", times[1]) if times else text_field("–")

    def price_words(self, unit: str) -> str:
        if not self.ratio:
            return "no comparison: one of the two pays no measurable price, or saves nothing"
        times, (low, high) = self.ratio
        if low <= 1 <= high:
            return f"no measurable difference in price for each {unit} saved"
        return f"{self.first.method} pays {number(times)} times as much perplexity as {self.second.method}"

    def closer_words(self) -> str:
        if not self.difference.measurable:
            return "no measurable difference in KL"
        return (
            f"{(self.second if self.difference.nats > 0 else self.first).method} is measurably closer to the baseline"
        )


def pair_of(first: Cell, second: Cell, results: Results) -> Pair:
    ratio = price_ratio(first, second, results.baseline)
    if ratio and ratio[0] < 1:
        return pair_of(second, first, results)
    return Pair(first, second, ratio, results.kl_differences[first.method, second.method])


def trade_off_pairs_table(results: Results) -> Table:
    """Each pair of methods on the same windows and the same prompts."""
    _, unit = size_unit(results.baseline.weight_bytes)
    pairs = [pair_of(*two, results) for two in combinations([c for c in results.sized if c is not results.baseline], 2)]
    columns = [
        Column("method", "Method", "left", lambda pair: name_field(pair.first.method)),
        text("other", "Against", lambda pair: pair.second.method),
        Column("price_ratio", "Price ratio [95\u00a0%]", field=Pair.price_field),
        text("words", f"For each {unit} saved", lambda pair: pair.price_words(unit)),
        figure(
            "kl_nats_difference",
            "KL difference, nats [95\u00a0%, paired]",
            partial(signed, decimals=4),
            lambda pair: pair.difference.nats,
            lambda pair: pair.difference.ci95,
        ),
        text("closer", "Closer", Pair.closer_words),
    ]
    note = (
        "Intervals are of one pair; a method is called closer where the difference also passes Holm's correction for "
        f"all {len(pairs)} pairs."
    )
    return table_of("trade-off-pairs", columns, pairs, note if len(pairs) > 1 else "")
