"""Columns of the tables that have a row a method: how each gets its cell from the method's results."""

from collections.abc import Callable

from quantharm.common.left_out import BASELINE
from quantharm.reporting.format import fixed, number
from quantharm.reporting.results import Cell as MethodCell
from quantharm.reporting.tables.table import Cell, Column, figure_cell, name_cell, text_cell

METHOD = Column("method", "Method", "left", lambda cell: name_cell(cell.method, cell.failed))


def times(value: float) -> str:
    """`2.00×`"""
    return f"{fixed(value, 2)}×"


def one_decimal(value: float) -> str:
    return fixed(value, 1)


def thousands(value: int) -> str:
    return f"{value:,}"


def figure(
    key: str,
    label: str,
    value: Callable[[MethodCell], float | None],
    show: Callable[[float], str] = number,
    bounds: Callable[[MethodCell], list[float] | None] = lambda cell: None,
) -> Column:
    """A figure of each method, with its interval."""
    return Column(key, label, cell=lambda cell: figure_cell(value(cell), show, bounds(cell)))


def summed_up(
    key: str, label: str, show: Callable[[float], str] = number, bounds: str | None = None, baseline: str | None = None
) -> Column:
    """A figure under its key in the summary; bounds: the key of its interval; baseline: the word in its row."""
    column = figure(key, label, lambda cell: cell.row[key], show, lambda cell: bounds and cell.row[bounds])
    return column if baseline is None else but_baseline(column, baseline)


def text(key: str, label: str, words: Callable[[MethodCell], str]) -> Column:
    return Column(key, label, "left", lambda cell: text_cell(words(cell)))


def but_baseline(column: Column, word: str = "–") -> Column:
    """The same column with a word in the baseline's row."""

    def cell_of(cell: MethodCell) -> Cell:
        return text_cell(word) if cell.method == BASELINE else column.cell(cell)

    return Column(column.key, column.label, column.align, cell_of)


COMPRESSION = summed_up("compression", "Compression", times)
