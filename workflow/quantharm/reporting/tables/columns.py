"""Columns that carry how their value is got and shown: of a method's cell, a study's row, or whatever the rows are."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from quantharm.common.constants import BASELINE
from quantharm.common.records.divergence import DepthBin
from quantharm.common.records.perplexity import KlOfBin
from quantharm.reporting.format import at_least, number, one_decimal, percent, times
from quantharm.reporting.results import Cell
from quantharm.reporting.tables.table import Column, Field, figure_field, name_field, text_field, verdict_field
from quantharm.reporting.verdicts import Verdict

Value = str | Callable[[Any], Any]  # a key of the item (of its row in the summary), or how to get it of the item
CHANGE, CHANGE_CI95 = "perplexity_change_percent", "perplexity_change_percent_ci95"  # keys of the summary
METHOD = Column("method", "Method", "left", lambda cell: name_field(cell.method, cell.failed))


BOUNDED = ("kl_nats", "text_kl_nats")  # figures that are lower bounds where a server shows some tokens only


def is_bounded(item: Any) -> bool:
    return bool(getattr(item, "bounded", False))


def value_of(item: Any, value: Value) -> Any:
    if callable(value):
        return value(item)
    return (item if isinstance(item, dict) else item.row)[value]


def figure(
    key: str,
    label: str,
    show: Callable[[Any], str] = number,
    of: Value | None = None,
    bounds: Value | None = None,
    aside: Value = lambda item: "",
    tone: Callable[[Any], str] = lambda item: "",
    baseline: str | None = None,
) -> Column:
    """A figure with its interval; of: its value, where that is not under `key`; baseline: the word in its row.

    The value may bring its interval: (value, interval).
    """

    def field_of(item: Any) -> Field:
        shown = (lambda v: at_least(show(v))) if key.startswith(BOUNDED) and is_bounded(item) else show
        value, interval = value_of(item, of or key), None if bounds is None else value_of(item, bounds)
        if isinstance(value, tuple):
            value, interval = value
        return figure_field(value, shown, interval, value_of(item, aside), tone(item))

    column = Column(key, label, field=field_of)
    return column if baseline is None else but_baseline(column, baseline)


def text(key: str, label: str, words: Value, aside: Value = lambda item: "", align: str = "left") -> Column:
    return Column(key, label, align, lambda item: text_field(str(value_of(item, words)), aside=value_of(item, aside)))


def named(key: str, label: str, name: Callable[[Any], str] = str) -> Column:
    """The first column of a table whose rows are no methods."""
    return Column(key, label, "left", lambda item: Field(name(item), name(item), header=True))


def by_method(
    key: str, cells: list[Cell], field_of: Callable[[Cell, Any], Field], label="{}", align="right"
) -> list[Column]:
    """A column a method; field_of: what stands there of a method in the row of an item."""
    names = [cell.name_of_kl if key.startswith("kl_nats") else cell.marked_name for cell in cells]
    return [
        Column(f"{key}/{cell.method}", label.format(name), align, partial(field_of, cell))
        for cell, name in zip(cells, names, strict=True)
    ]


def kl_by_method(cells: list[Cell], bin_of: Callable[[Cell, Any], KlOfBin | DepthBin | None]) -> list[Column]:
    """A column a method with its mean KL in the bin of a row; bin_of: the method's own such bin, if it has one."""

    def field_of(cell: Cell, item: Any) -> Field:
        own = bin_of(cell, item)
        return figure_field(own["kl_nats_mean"], number, own["ci95"]) if own else text_field("–")

    return by_method("kl_nats_mean", cells, field_of, "{}, nats [95\u00a0%]")


def but_baseline(column: Column, word: str = "–") -> Column:
    """The same column with a word in the baseline's row."""

    def field_of(cell: Cell) -> Field:
        return text_field(word) if cell.method == BASELINE else column.field(cell)

    return replace(column, field=field_of)


def verdict(
    key: str, label: str, of: Callable[[Cell], Verdict], with_figure: bool = False, baseline: str | None = None
) -> Column:
    """A verdict on each method; baseline: the word in its row."""
    column = Column(key, label, "left", lambda cell: verdict_field(of(cell), with_figure))
    return column if baseline is None else but_baseline(column, baseline)


def perplexity_change(
    label: str = "Perplexity change [95\u00a0%]",
    baseline: str = "–",
    tone: Callable[[Cell], str] = lambda cell: "",
) -> Column:
    """The change from the baseline in percent, with its paired interval."""
    return figure(CHANGE, label, percent, bounds=CHANGE_CI95, tone=tone, baseline=baseline)


def first_difference(label: str, bounds: str | None = None) -> Column:
    """The median of the first tokens that differ from the baseline's answers."""
    key = "first_difference_median"
    return figure(f"{key}_token", label, one_decimal, key, bounds, baseline="–")


def mean_kl(tone: Callable[[Cell], str] = lambda cell: "") -> Column:
    """The mean KL over the prompts; the baseline's is the noise floor."""

    def bounds(cell: Cell) -> list[float] | None:
        return None if cell.method == BASELINE else cell.row["kl_nats_ci95"]

    def aside(cell: Cell) -> str:
        return "noise floor" if cell.method == BASELINE else ""

    return figure("kl_nats_mean", "Mean KL, nats [95\u00a0%]", number, None, bounds, aside, tone)


COMPRESSION = figure("compression", "Compression", times)
