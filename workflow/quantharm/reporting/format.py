"""Figures as text: significant digits, signs, units. A figure that does not exist is a dash."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

Bounds = list[float] | None  # [low, high] of 95 %; None where there are too few values
MISSING = "–"
NARROW = "\u00a0"  # between a figure and its unit, so that they stay on one line


def number(value: float | None, digits: int = 3) -> str:
    """`digits` significant digits, thousands grouped; powers of ten below a ten-thousandth."""
    if value is None or not math.isfinite(value):
        return MISSING if value is None else str(value)
    if value == 0:
        return "0"
    if abs(value) < 1e-4:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa.replace('-', '−')}×10{superscript(int(exponent))}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}".replace("-", "−")


def superscript(exponent: int) -> str:
    return str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def fixed(value: float | None, decimals: int) -> str:
    return MISSING if value is None else f"{value:,.{decimals}f}".replace("-", "−")


def signed(value: float | None, decimals: int = 2, unit: str = "") -> str:
    """With its sign; what would round to zero gets the decimals to show its own, down to a millionth."""
    if value is None:
        return MISSING
    if abs(value) < 1e-6:
        return f"{0:.{decimals}f}{unit}"
    while abs(value) < 0.5 * 10**-decimals:
        decimals += 1
    return f"{value:+,.{decimals}f}".replace("-", "−") + unit


def percent(value: float | None, decimals: int = 2) -> str:
    """A change in percent, with its sign."""
    return signed(value, decimals, f"{NARROW}%")


def share(value: float | None, decimals: int = 0) -> str:
    """A share of one, as percent."""
    return MISSING if value is None else f"{100 * value:.{decimals}f}{NARROW}%".replace("-", "−")


def times(value: float) -> str:
    """`2.00×`"""
    return f"{fixed(value, 2)}×"


def thousands(value: int) -> str:
    return f"{value:,}"


def at_least(text: str) -> str:
    """A lower bound."""
    return f"≥{NARROW}{text}"


def mean_kl(row: Mapping[str, Any]) -> str:
    """`0.0123`, or `≥ 0.0123` of a cell that shows some tokens only; row: of the summary."""
    shown = number(row["kl_nats_mean"])
    return at_least(shown) if row.get("kl_is_lower_bound") else shown


one_decimal, two_decimals = partial(fixed, decimals=1), partial(fixed, decimals=2)
whole_percent, percent_to_a_tenth = partial(percent, decimals=0), partial(percent, decimals=1)
share_to_a_tenth = partial(share, decimals=1)


def interval(bounds: Bounds, show=number) -> str:
    """`[low, high]`; nothing where there is none."""
    return "" if bounds is None else f"[{show(bounds[0])}, {show(bounds[1])}]"


def sentence_case(text: str) -> str:
    """The first letter large, the rest as it is."""
    return text[:1].upper() + text[1:]


def size_unit(largest: float) -> tuple[float, str]:
    """(bytes, name) of the unit in which all sizes of one table are shown."""
    return (1e9, "GB") if largest >= 1e9 else (1e6, "MB")


def size(value: float | None) -> str:
    """Decimal units: 1 GB = 10⁹ bytes."""
    if value is None:
        return MISSING
    scale, unit = size_unit(abs(value))
    return f"{fixed(value / scale, 2)}{NARROW}{unit}"


def seconds(value: float | None) -> str:
    if value is None:
        return MISSING
    return f"{number(1000 * value)}{NARROW}ms" if abs(value) < 1 else f"{number(value)}{NARROW}s"


def count(many: int, one: str, more: str | None = None) -> str:
    """`1 prompt`, `24 prompts`."""
    return f"{many:,} {one if many == 1 else more or one + 's'}"


def listing(words: list[str], last: str = "and") -> str:
    """`a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}" if words else "none"
