"""A table once, in three forms: HTML (by the template), Markdown, and CSV and Parquet with the bare values."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas

from quantharm.common.files import replacing, write_parquet
from quantharm.reporting.format import MISSING, Bounds, interval, number
from quantharm.reporting.names import OVERVIEW_TABLES, TABLES
from quantharm.reporting.text import markdown, with_code
from quantharm.reporting.verdicts import Verdict

TITLES = TABLES | OVERVIEW_TABLES


@dataclass(frozen=True)
class Field:
    """`text` is shown, `value` sorts and is saved; `aside` stands beside it in small; `tone` is a verdict's level."""

    text: str
    value: float | str | None = None
    bounds: Bounds = None
    aside: str = ""
    tone: str = ""
    rule: str = ""
    header: bool = False  # names its row


def itself(item: Any) -> Field:
    return Field(str(item), str(item))


@dataclass(frozen=True)
class Column:
    key: str  # in CSV and Parquet, with the unit
    label: str
    align: str = "right"
    field: Callable[[Any], Field] = itself  # what stands in the row of a method, or of whatever the rows are


@dataclass(frozen=True)
class Table:
    key: str
    title: str
    columns: list[Column]
    rows: list[list[Field]]
    note: str = ""
    last_is_total: bool = False


def table_of(
    key: str, columns: list[Column], items: Iterable[Any], note: str = "", title: str = "", last_is_total: bool = False
) -> Table:
    """A row for each item, of which each column makes its field; title: where it is another than in names.py."""
    rows = [[column.field(item) for column in columns] for item in items]
    return Table(key, title or TITLES[key], columns, rows, note, last_is_total)


def name_field(method: str, failed: list[str] | None = None) -> Field:
    """A method's name at the start of a row; `†` marks one whose figures are not to be believed."""
    if failed:
        return Field(method, method, aside=f"† failed {', '.join(failed)}", tone="failed", header=True)
    return Field(method, method, header=True)


def text_field(text: str, tone: str = "", aside: str = "") -> Field:
    return Field(text, text, aside=aside, tone=tone)


def figure_field(value: float | None, show=number, bounds: Bounds = None, aside: str = "", tone: str = "") -> Field:
    """A figure with its interval."""
    shown = " ".join(part for part in (interval(bounds, show), aside) if part)
    return Field(MISSING if value is None else show(value), value, bounds, shown, tone)


def verdict_field(verdict: Verdict, with_figure: bool = False) -> Field:
    return Field(verdict.words, verdict.words, None, verdict.figure if with_figure else "", verdict.level, verdict.rule)


def markdown_table(table: Table) -> str:
    """Pipes and markup in names are escaped; asides follow in the same field, a verdict's reason after a colon."""

    def show(field: Field) -> str:
        has_reason = field.tone and field.aside[:1].isalpha() and not field.header
        colon = ":" if has_reason else ""
        shown = markdown(f"{field.text}{colon} {field.aside}".strip())
        return f"**{shown}**" if field.header else shown

    lines = [
        [markdown(column.label) for column in table.columns],
        [":--" if column.align == "left" else "--:" for column in table.columns],
        *[[show(field) for field in row] for row in table.rows],
    ]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{text}\n\n{markdown(table.note, with_code)}" if table.note else text


def frame(table: Table) -> pandas.DataFrame:
    """One column a figure, and `<key>_ci95_low`, `_ci95_high` beside it where it has intervals."""
    columns: dict[str, list[Any]] = {}
    for i, column in enumerate(table.columns):
        fields = [row[i] for row in table.rows]
        values = [field.value for field in fields]
        if any(isinstance(value, str) for value in values):
            values = [None if value is None else str(value) for value in values]
        columns[column.key] = values
        if any(field.bounds for field in fields):
            columns[f"{column.key}_ci95_low"] = [field.bounds and field.bounds[0] for field in fields]
            columns[f"{column.key}_ci95_high"] = [field.bounds and field.bounds[1] for field in fields]
    return pandas.DataFrame(columns)


def formula_safe(values: pandas.DataFrame) -> pandas.DataFrame:
    """For CSV: text that a spreadsheet would run as a formula gets an apostrophe before it."""
    return values.map(lambda v: f"'{v}" if isinstance(v, str) and v[:1] in ("=", "+", "-", "@", "\t", "\r") else v)


def write_table(folder: Path, table: Table) -> None:
    """<key>.csv and <key>.parquet."""
    values = frame(table)
    write_parquet(folder / f"{table.key}.parquet", values)
    with replacing(folder / f"{table.key}.csv") as path:
        formula_safe(values).to_csv(path, index=False)


def transposed(table: Table, corner: Column) -> Table:
    """Rows as columns: one column a method, one row a figure."""
    columns = [corner, *[Column(str(row[0].value), row[0].text + (" †" if row[0].tone else "")) for row in table.rows]]
    rows = [
        [Field(column.label, column.key, header=True), *[row[i] for row in table.rows]]
        for i, column in enumerate(table.columns)
        if i
    ]
    return replace(table, columns=columns, rows=rows)
