"""Tables of bytes and seconds."""

import operator
from collections.abc import Mapping
from functools import partial
from typing import Any

from quantharm.common.records.quantization import QuantizationRecord, StoredKind
from quantharm.reporting.format import fixed, number, one_decimal, percent_to_a_tenth, share, signed, size, size_unit
from quantharm.reporting.results import Cell, Results
from quantharm.reporting.tables.columns import COMPRESSION, METHOD, by_method, figure, named
from quantharm.reporting.tables.table import Column, Field, Table, figure_field, table_of, text_field

ALL = "All prompts"
BITS_OF_DTYPE = {"bfloat16": 16, "float16": 16, "float32": 32}


def bits_of(record: QuantizationRecord) -> int:
    """Bits of a weight that is not quantized, as the cell was loaded, whatever was asked for."""
    return BITS_OF_DTYPE[record.get("loaded_dtype") or record["dtype"]]


def formula_bytes(cell: Cell, results: Results) -> float | None:
    """Loaded bytes by the format's formula: its bits for the quantized weights, the baseline's dtype for the rest."""
    record, baseline = cell.quantization, results.baseline.quantization
    quantized = record["quantized_weights"]
    if baseline["parameters"] is None or baseline["weight_bytes"] is None or quantized is None:
        return None  # not seen
    if record["bits_per_weight_formula"] is None:
        return baseline["parameters"] * bits_of(record) / 8
    return baseline["weight_bytes"] + quantized * (record["bits_per_weight_formula"] - bits_of(baseline)) / 8


def sizes_table(results: Results) -> Table:
    whole = results.baseline.weight_bytes
    scale, unit = size_unit(whole)

    def in_unit(value: float) -> str:
        return fixed(value / scale, 2)

    def bits_field(cell: Cell) -> Field:
        bits = cell.row["bits_per_weight"]
        if cell.served:
            return text_field("not seen")
        return Field(number(bits, 4) if bits else f"{bits_of(cell.quantization)}, not quantized", bits)

    def matrices_field(cell: Cell) -> Field:
        if cell.served:
            return text_field("not seen")
        quantized, kept = len(cell.quantization["quantized_modules"]), len(cell.quantization["kept_modules"])
        return Field(f"{quantized} of {quantized + kept}", quantized)

    def share_saved(cell: Cell) -> str:
        return "" if cell.served else f"({fixed(100 * cell.saved_bytes / whole, 1)}\u00a0%)"

    columns = [
        METHOD,
        figure("checkpoint_bytes", f"On disk, {unit}", in_unit),
        figure("weight_bytes", f"Loaded, {unit}", in_unit),
        figure("formula_bytes", f"By the formula, {unit}", in_unit, lambda cell: formula_bytes(cell, results)),
        COMPRESSION,
        figure("saved_bytes", f"Saved, {unit}", in_unit, aside=share_saved, baseline="–"),
        Column("bits_per_weight", "Bits per weight", field=bits_field),
        figure("bits_per_weight_formula", "By the formula", partial(number, digits=4)),
        Column("quantized_matrices", "Matrices quantized", field=matrices_field),
    ]
    parameters = results.baseline.figure("parameters")
    note = (
        f"{unit} is 10{'⁹' if unit == 'GB' else '⁶'} bytes. Compression and savings compare loaded weights. Bits "
        "per weight count the quantized matrices with their scales; everything else stays at the baseline's dtype. In "
        f"float32 the model would take {size(4 * parameters)} (four bytes for each of {parameters:,} parameters: "
        "computed, not measured)."
    )
    return table_of("sizes", columns, results.cells, note)


def stored_types_table(results: Results) -> Table:
    """Of methods that store their matrices in several types: a row a method, a column a kind of layer."""

    def types_of(cell: Cell) -> dict[str, dict[str, StoredKind]]:
        return cell.quantization.get("by_layer_kind", {})

    def without_scales(name: str) -> str:
        """Bits a weight, rounded: a scale a row makes them differ with the matrix's shape."""
        return str(round(float(name.split()[0]))) if name.endswith(" bits") else name

    def is_mixed(cell: Cell) -> bool:
        return len({without_scales(name) for types in types_of(cell).values() for name in types}) > 1

    def stored(cell: Cell, kind: str) -> Field:
        types = types_of(cell).get(kind, {})
        several = len(types) > 1
        words = [f"{name} ({row['matrices']})" if several else name for name, row in types.items()]
        weights = sum(row["weights"] for row in types.values())
        bits = sum(row["bits_per_weight"] * row["weights"] for row in types.values()) / weights if weights else None
        aside = f"{number(bits, 4)} bits" if bits and not all(name.endswith("bits") for name in types) else ""
        return Field(", ".join(words) or "not quantized", ", ".join(words), aside=aside)

    mixed = [cell for cell in results.cells if is_mixed(cell)]
    kinds = dict.fromkeys(kind for cell in mixed for kind in types_of(cell))
    columns = [METHOD, *(Column(kind, kind, "left", partial(stored, kind=kind)) for kind in kinds)]
    note = "Methods that mix types. In brackets: how many matrices, where one kind of layer has several types."
    return table_of("stored-types", columns, mixed, note)


def memory_table(results: Results) -> Table:
    on_gpu = results.baseline.generation["provenance"]["device_type"] == "cuda"
    reference = results.baseline.weight_bytes

    def memory(key: str, label: str) -> Column:
        return figure(key, label, size, lambda cell: (cell.generation["memory"] or {}).get(key))

    columns = [
        METHOD,
        figure("weight_bytes", "Weights loaded", size),
        figure(
            "weight_change_percent",
            "Against the baseline",
            percent_to_a_tenth,
            lambda cell: percent_of(cell.row["weight_bytes"], reference),
            baseline="–",
        ),
        memory("allocated_bytes", "GPU allocated"),
        memory("reserved_bytes", "GPU reserved, peak"),
        memory("peak_bytes", "GPU peak when generating" if on_gpu else "Peak of the process"),
        memory("host_peak_bytes", "Host process, peak with loading"),
    ]
    note = "" if on_gpu else "This run had no GPU: the peak is the whole process, with libraries and loading."
    return table_of("memory", columns, results.cells, note)


def percent_of(mine: float | None, reference: float) -> float | None:
    return 100 * (mine / reference - 1) if reference and mine is not None else None


def points(mine: float, reference: float) -> float:
    return 100 * (mine - reference)


BY_CATEGORY = {  # what is measured, its unit, how it is shown, its change from the baseline's, how that is shown
    "time-by-category": ("seconds_mean", ", s", number, percent_of, percent_to_a_tenth),
    "length-by-category": ("new_tokens_mean", ", tokens", one_decimal, operator.sub, partial(signed, decimals=1)),
    "success-by-category": ("succeeded", "", share, points, partial(signed, decimals=1, unit=" pt")),
}


def by_category_table(key: str, results: Results) -> Table:
    """Baseline first, then each method, then each method's difference; the last row is the mean of all prompts."""
    measured, unit, show, change, show_change = BY_CATEGORY[key]

    def value_of(cell: Cell, category: str) -> float | None:
        """A figure of one category, or of all prompts; `succeeded` as a share."""
        record: Mapping[str, Any] | None = cell.generation
        if category != ALL:
            record = cell.generation["by_category"].get(category)
        if record is None:
            return None
        return record["succeeded"] / record["prompts"] if measured == "succeeded" else record[measured]

    def difference(cell: Cell, category: str) -> Field:
        mine, reference = value_of(cell, category), value_of(results.baseline, category)
        return figure_field(None if mine is None or reference is None else change(mine, reference), show_change)

    columns = [
        named("category", "Category"),
        *by_method(measured, results.cells, lambda cell, c: figure_field(value_of(cell, c), show), f"{{}}{unit}"),
        *by_method(f"{measured}_change", results.methods, difference, "Δ {}"),
    ]
    return table_of(key, columns, [*results.categories, ALL], last_is_total=True)
