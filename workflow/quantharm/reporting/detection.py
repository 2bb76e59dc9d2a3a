"""Rates of the scan for dequantized weights, and what evades it, as tests/benchmark/integrity_detection.py measured.

That benchmark writes integrity-detection.csv, from which the report and the benchmark's own page are made alike.
"""

from functools import partial
from pathlib import Path
from typing import TypedDict

import pandas
from scipy import stats

from quantharm.common.errors import UserError
from quantharm.forensics.detection.chance import FALSE_ALARM_A_CHECKPOINT, FALSE_ALARM_A_MATRIX, is_dequantized
from quantharm.reporting.format import count, fixed, listing, share
from quantharm.reporting.tables.columns import named
from quantharm.reporting.tables.table import Column, Field, Table, table_of

RATES = Path(__file__).parents[2] / "report" / "integrity-detection.csv"
NOTHING, RANDOM, NATIVE = "nothing", "random matrices", "nothing (ternary, as BitNet)"
REAL = "nothing, real: "  # how the names of real models begin that were never quantized
FOUR_BIT = ", 4 bits in 32"  # how those of 4-bit integers, written out, end
ONLY_AWQ = "scales folded back"
UNCHANGED, AS_STORED = "none, ", "as stored, in 3 formats"  # how the changes that are none begin; their common column


class Rate(TypedDict):
    """A row of the file: one change to the weights that one quantizer made."""

    quantizer: str
    change: str
    expected: str  # what the scan should name
    matrices: int
    detected: int  # matrices with a trace
    recovered: int  # of them, those whose method, group and axis were named
    ratio_lowest: float
    ratio_median: float
    ratio_highest: float
    distinct_lowest: float
    seen_as: str


Rates = list[Rate]
ADDED_UP = dict.fromkeys(("matrices", "detected", "recovered"), "sum")
LOWEST = dict.fromkeys(("ratio_lowest", "distinct_lowest"), "min")


def read_rates(path: Path = RATES) -> Rates:
    """A row for each quantizer and change: how many matrices show a trace, and of how many it is the right one."""
    types = Rate.__annotations__
    try:
        rows = pandas.read_csv(
            path, usecols=list(types), dtype=types, keep_default_na=False, float_precision="round_trip"
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); take it from the repository again") from None
    return rows.to_dict("records")


def is_clean(row: Rate) -> bool:
    return row["quantizer"] in (NOTHING, RANDOM) or row["quantizer"].startswith(REAL)


def is_real(row: Rate) -> bool:
    """Whether a row is of a model beside the built-in one."""
    return row["quantizer"].startswith(REAL) or row["quantizer"].endswith(FOUR_BIT)


def never_quantized(rates: Rates) -> Rates:
    return [row for row in rates if is_clean(row)]


def quantized(rates: Rates, change: str) -> Rates:
    """The rows of one change to weights that a quantizer had made."""
    return [r for r in rates if r["change"] == change and not is_clean(r) and r["quantizer"] != NATIVE]


def summed(rates: Rates) -> tuple[int, int]:
    """(matrices with a trace, matrices scanned) of all rows."""
    return sum(row["detected"] for row in rates), sum(row["matrices"] for row in rates)


def changes(rates: Rates) -> list[str]:
    """The table's columns; what was tried on AWQ alone is said below it."""
    return list(dict.fromkeys(row["change"] for row in rates if row["quantizer"] == NOTHING))


def joined(rates: Rates) -> Rates:
    """The rates with those of the storage formats added up, where nothing else was changed."""
    rows = pandas.DataFrame(rates)
    rows["change"] = rows["change"].where(~rows["change"].str.startswith(UNCHANGED), AS_STORED)
    figures = dict.fromkeys(rows.columns, "first") | ADDED_UP | LOWEST
    return rows.groupby(["quantizer", "change"], sort=False).agg(figures).to_dict("records")


def detection_table(rates: Rates) -> Table:
    """Matrices with a trace of those scanned; aside, for how many method, group and axis were right if not for all."""
    rates = joined(rates)
    names = dict.fromkeys(row["quantizer"] for row in rates if row["quantizer"] != RANDOM)
    known = {(row["quantizer"], row["change"]): row for row in rates}

    def rate(change: str, name: str) -> Field:
        return field_of(known.get((name, change)))

    columns = [Column(f"detected/{change}", change, field=partial(rate, change)) for change in changes(rates)]
    return table_of("integrity-detection", [named("quantized_with", "Quantized with"), *columns], names)


def short_table(rates: Rates) -> Table:
    """The same for the README: quantizers of 8 bits, of fewer, ternary weights, and none, added up.

    Of the built-in model alone.
    """
    rates = joined([row for row in rates if not is_real(row)])
    names = ("8 bits", "4 bits and fewer", "ternary, as native training", "never quantized")
    kinds: dict[str, Rates] = {name: [] for name in names}
    for row in rates:
        eight = row["expected"].startswith("8-bit")
        kind = "never quantized" if is_clean(row) else "8 bits" if eight else "4 bits and fewer"
        kinds["ternary, as native training" if row["quantizer"] == NATIVE else kind].append(row)

    def caught(kind: str, change: str) -> Field:
        detected, of = summed([row for row in kinds[kind] if row["change"] == change])
        return Field(f"{detected} of {of}")

    columns = [Column("changed_by", "Then changed by", "left", lambda change: Field(change, change))]
    columns += [Column(kind, kind, field=partial(caught, kind)) for kind in kinds]
    return table_of("integrity-detection", columns, changes(rates))


def field_of(row: Rate | None) -> Field:
    if row is None:
        return Field("–")
    detected, of = row["detected"], row["matrices"]
    fewer = detected and row["expected"] and row["recovered"] < detected
    caught = "pass" if detected == of else "fail" if not detected else "undecided"
    clean = "fail" if detected else "pass"
    tone = "undecided" if row["quantizer"] == NATIVE else clean if is_clean(row) else caught
    aside = f"{row['recovered']} right" if fewer else ""
    return Field(f"{detected}/{of}", f"{detected}/{of}", aside=aside, tone=tone)


def checkpoint_notes(rates: Rates) -> list[str]:
    """The same by checkpoint, each row being one: called dequantized or not, and the rate by which that is decided."""
    clean = never_quantized(rates)
    alarms, matrices = summed(clean)
    called = [row for row in clean if is_dequantized(row["detected"], row["matrices"])]
    highest = float(stats.beta.ppf(0.95, alarms + 1, matrices - alarms))
    notes = [
        f"A checkpoint is called dequantized where more matrices show a trace than if one in "
        f"{1 / FALSE_ALARM_A_MATRIX:.0f} did by chance (at most {share(FALSE_ALARM_A_CHECKPOINT, 1)} of checkpoints); "
        f"measured were fewer than {share(highest, 2)} of matrices (95\u00a0%). Checkpoints never quantized, changed "
        f"or not: {len(called)} of {len(clean)} called so."
    ]
    for change in dict.fromkeys(row["change"] for row in rates):
        rows = quantized(rates, change)
        noticed = [row for row in rows if is_dequantized(row["detected"], row["matrices"])]
        if rows and change != ONLY_AWQ:
            notes.append(f"Checkpoints called dequantized, “{change}”: {len(noticed)} of {len(rows)}.")
    return notes


def detection_notes(rates: Rates) -> list[str]:
    """False alarms, what evades, what looks the same: sentences that follow from the rates."""
    checkpoints = checkpoint_notes(rates)
    rates = joined(rates)
    clean = never_quantized(rates)
    alarms, matrices = summed(clean)
    lowest = min(row["ratio_lowest"] for row in clean)
    notes = [
        f"False alarms: {alarms} of {matrices:,} matrices never quantized (lowest ratio {fixed(lowest, 2)}, and "
        f"{fixed(min(row['distinct_lowest'] for row in clean), 2)} of the distinct values expected).",
        *checkpoints,
    ]
    for change in changes(rates):
        rows = quantized(rates, change)
        hidden = [row["quantizer"] for row in rows if row["detected"] < row["matrices"] / 2]
        if hidden:
            which = listing(hidden) if len(hidden) <= 4 else f"{len(hidden)} of {len(rows)} quantizers"
            notes.append(f"Evades, “{change}”: {which}.")
    whole = [r for r in rates if r["change"] == ONLY_AWQ]
    notes += [f"AWQ with its scales folded back into the norms: {r['detected']} of {r['matrices']}." for r in whole]
    native = [r for r in rates if r["quantizer"] == NATIVE]
    if native:
        seen, of = summed(native)
        notes.append(
            "Native low-bit training looks the same as quantization: of ternary weights, one scale a matrix, as it "
            f"stores them, {share(seen / of)} of {count(of, 'matrix', 'matrices')} are called dequantized."
        )
    return notes
