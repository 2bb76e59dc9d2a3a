"""A table once, in three forms: HTML (by the template), Markdown, and CSV and Parquet with the bare values."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas

from quantharm.common.files import replacing, write_parquet
from quantharm.reporting.format import MISSING, interval, number
from quantharm.reporting.names import OVERVIEW_TABLES, TABLES
from quantharm.reporting.text import markdown
from quantharm.reporting.verdicts import Verdict

Bounds = list[float] | None
TITLES = TABLES | OVERVIEW_TABLES


@dataclass(frozen=True)
class Cell:
    """`text` is shown, `value` sorts and is saved; `aside` stands beside it in small; `tone` is a verdict's level."""

    text: str
    value: float | str | None = None
    bounds: Bounds = None
    aside: str = ""
    tone: str = ""
    rule: str = ""
    header: bool = False  # names its row


def itself(item: Any) -> Cell:
    return Cell(str(item), str(item))


@dataclass(frozen=True)
class Column:
    key: str  # in CSV and Parquet, with the unit
    label: str
    align: str = "right"
    cell: Callable[[Any], Cell] = itself  # what stands in the row of a method, or of whatever the rows are


@dataclass(frozen=True)
class Table:
    key: str
    title: str
    columns: list[Column]
    rows: list[list[Cell]]
    note: str = ""
    last_is_total: bool = False


def table_of(
    key: str, columns: list[Column], items: Iterable[Any], note: str = "", title: str = "", last_is_total: bool = False
) -> Table:
    """A row for each item, of which each column makes its cell; title: where it is another than in names.py."""
    rows = [[column.cell(item) for column in columns] for item in items]
    return Table(key, title or TITLES[key], columns, rows, note, last_is_total)


def name_cell(method: str, failed: list[str] | None = None) -> Cell:
    """A method's name at the start of a row; `†` marks one whose figures are not to be believed."""
    if failed:
        return Cell(method, method, aside=f"† failed {', '.join(failed)}", tone="failed", header=True)
    return Cell(method, method, header=True)


def text_cell(text: str, tone: str = "", aside: str = "") -> Cell:
    return Cell(text, text, aside=aside, tone=tone)


def figure_cell(value: float | None, show=number, bounds: Bounds = None, aside: str = "", tone: str = "") -> Cell:
    """A figure with its interval."""
    shown = " ".join(part for part in (interval(bounds, show), aside) if part)
    return Cell(MISSING if value is None else show(value), value, bounds, shown, tone)


def verdict_cell(verdict: Verdict, with_figure: bool = False) -> Cell:
    return Cell(verdict.words, verdict.words, None, verdict.figure if with_figure else "", verdict.level, verdict.rule)


def markdown_table(table: Table) -> str:
    """Pipes and markup in names are escaped; asides follow in the same cell, a verdict's reason after a colon."""

    def show(cell: Cell) -> str:
        has_reason = cell.tone and cell.aside[:1].isalpha() and not cell.header
        colon = ":" if has_reason else ""
        shown = markdown(f"{cell.text}{colon} {cell.aside}".strip())
        return f"**{shown}**" if cell.header else shown

    lines = [
        [markdown(column.label) for column in table.columns],
        [":--" if column.align == "left" else "--:" for column in table.columns],
        *[[show(cell) for cell in row] for row in table.rows],
    ]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{text}\n\n{markdown(table.note)}" if table.note else text


def frame(table: Table) -> pandas.DataFrame:
    """One column a figure, and `<key>_ci95_low`, `_ci95_high` beside it where it has intervals."""
    columns: dict[str, list[Any]] = {}
    for i, column in enumerate(table.columns):
        cells = [row[i] for row in table.rows]
        values = [cell.value for cell in cells]
        if any(isinstance(value, str) for value in values):
            values = [None if value is None else str(value) for value in values]
        columns[column.key] = values
        if any(cell.bounds for cell in cells):
            columns[f"{column.key}_ci95_low"] = [cell.bounds and cell.bounds[0] for cell in cells]
            columns[f"{column.key}_ci95_high"] = [cell.bounds and cell.bounds[1] for cell in cells]
    return pandas.DataFrame(columns)


def formula_safe(data: pandas.DataFrame) -> pandas.DataFrame:
    """For CSV: text that a spreadsheet would run as a formula gets an apostrophe before it."""
    return data.map(lambda v: f"'{v}" if isinstance(v, str) and v[:1] in ("=", "+", "-", "@", "\t", "\r") else v)


def write_table(folder: Path, table: Table) -> None:
    """<key>.csv and <key>.parquet."""
    data = frame(table)
    write_parquet(folder / f"{table.key}.parquet", data)
    with replacing(folder / f"{table.key}.csv") as path:
        formula_safe(data).to_csv(path, index=False)


def transposed(table: Table, corner: Column) -> Table:
    """Rows as columns: one column a method, one row a figure."""
    columns = [corner, *[Column(str(row[0].value), row[0].text + (" †" if row[0].tone else "")) for row in table.rows]]
    rows = [
        [Cell(column.label, column.key, header=True), *[row[i] for row in table.rows]]
        for i, column in enumerate(table.columns)
        if i
    ]
    return replace(table, columns=columns, rows=rows)
