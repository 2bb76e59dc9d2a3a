"""Tables of what a method gains or costs in bytes and seconds."""

from functools import partial
from typing import Any

from quantharm.reporting.format import fixed, number, percent, share, signed, size, size_unit
from quantharm.reporting.results import Cell as MethodCell
from quantharm.reporting.results import Results
from quantharm.reporting.tables.columns import COMPRESSION, METHOD, but_baseline, figure, one_decimal, summed_up
from quantharm.reporting.tables.quality import mark
from quantharm.reporting.tables.table import Cell, Column, Table, figure_cell, table_of

BITS_OF_DTYPE = {"bfloat16": 16, "float16": 16, "float32": 32}


def bits_of(record: dict[str, Any]) -> int:
    """Bits of a weight that is not quantized, as the cell was loaded, whatever was asked for."""
    return BITS_OF_DTYPE[record.get("loaded_dtype", record["dtype"])]


def formula_bytes(cell: MethodCell, results: Results) -> float:
    """Loaded bytes by the format's formula: its bits for the quantized weights, the baseline's dtype for the rest."""
    record, baseline = cell.quantization, results.baseline.quantization
    if record["bits_per_weight_formula"] is None:
        return baseline["parameters"] * bits_of(record) / 8
    quantized = record["quantized_weights"]
    return baseline["weight_bytes"] + quantized * (record["bits_per_weight_formula"] - bits_of(baseline)) / 8


def sizes_table(results: Results) -> Table:
    scale, unit = size_unit(results.baseline.row["weight_bytes"])

    def in_unit(value: float) -> str:
        return fixed(value / scale, 2)

    def bits_cell(cell: MethodCell) -> Cell:
        bits = cell.row["bits_per_weight"]
        return Cell(number(bits, 4) if bits else f"{bits_of(cell.quantization)}, not quantized", bits)

    def matrices_cell(cell: MethodCell) -> Cell:
        quantized, kept = (len(cell.quantization[f"{key}_modules"]) for key in ("quantized", "kept"))
        return Cell(f"{quantized} of {quantized + kept}", quantized)

    def saved_cell(cell: MethodCell) -> Cell:
        saved = cell.row["saved_bytes"]
        aside = f"({fixed(100 * saved / results.baseline.row['weight_bytes'], 1)}\u00a0%)"
        return figure_cell(saved, in_unit, aside=aside)

    columns = [
        METHOD,
        summed_up("checkpoint_bytes", f"On disk, {unit}", in_unit),
        summed_up("weight_bytes", f"Loaded, {unit}", in_unit),
        figure("formula_bytes", f"By the formula, {unit}", lambda cell: formula_bytes(cell, results), in_unit),
        COMPRESSION,
        but_baseline(Column("saved_bytes", f"Saved, {unit}", cell=saved_cell)),
        Column("bits_per_weight", "Bits a weight", cell=bits_cell),
        summed_up("bits_per_weight_formula", "By the formula", partial(number, digits=4)),
        Column("quantized_matrices", "Matrices quantized", cell=matrices_cell),
    ]
    parameters = results.baseline.quantization["parameters"]
    note = (
        f"{unit} is 10{'⁹' if unit == 'GB' else '⁶'} bytes. Compression and savings compare loaded weights. Bits a "
        "weight count the quantized matrices with their scales; everything else stays at the baseline's dtype. In "
        f"float32 the model would take {size(4 * parameters)} (four bytes for each of {parameters:,} parameters: "
        "computed, not measured)."
    )
    return table_of("sizes", "Size and compression", columns, results.cells, note)


def memory_table(results: Results) -> Table:
    on_gpu = results.baseline.generation["provenance"]["device_type"] == "cuda"
    reference = results.baseline.row["weight_bytes"]

    def memory(key: str, label: str) -> Column:
        return figure(key, label, lambda cell: cell.generation["memory"].get(key), size)

    change = figure(
        "weight_change_percent",
        "Against the baseline",
        lambda cell: 100 * (cell.row["weight_bytes"] / reference - 1),
        partial(percent, decimals=1),
    )
    columns = [
        METHOD,
        summed_up("weight_bytes", "Weights loaded", size),
        but_baseline(change),
        memory("allocated_bytes", "GPU allocated"),
        memory("reserved_bytes", "GPU reserved, peak"),
        memory("peak_bytes", "GPU peak when generating" if on_gpu else "Peak of the process"),
        memory("host_peak_bytes", "Host process, peak with loading"),
    ]
    note = "" if on_gpu else "This run had no GPU: the peak is the whole process, with libraries and loading."
    return table_of("memory", "Memory when generating", columns, results.cells, note)


def by_category_table(results: Results, key: str, title: str, measured: str, show, difference, unit: str) -> Table:
    """Baseline first, then each method, then each method's difference; the last row is the mean of all prompts."""
    rows = []
    for category in [*results.categories, None]:
        figures = [value_of(cell, category, measured) for cell in results.cells]
        reference = figures[0]
        changes = [difference(value, reference) for value in figures[1:]]
        name = category or "All prompts"
        rows.append([Cell(name, name, header=True), *[figure_cell(v, show) for v in figures], *changes])
    methods = [Column(f"{measured}/{cell.method}", f"{cell.method}{mark(cell)}{unit}") for cell in results.cells]
    changed = [Column(f"{measured}_change/{cell.method}", f"Δ {cell.method}{mark(cell)}") for cell in results.methods]
    return Table(key, title, [Column("category", "Category", "left"), *methods, *changed], rows, last_is_total=True)


def value_of(cell: MethodCell, category: str | None, measured: str) -> float | None:
    """A figure of one category, or of all prompts; `succeeded` as a share."""
    record = cell.generation if category is None else cell.generation["by_category"].get(category)
    if record is None:
        return None
    return record["succeeded"] / record["prompts"] if measured == "succeeded" else record[measured]


def difference_percent(value: float | None, reference: float | None) -> Cell:
    change = None if value is None or not reference else 100 * (value / reference - 1)
    return figure_cell(change, lambda v: percent(v, 1))


def difference_tokens(value: float | None, reference: float | None) -> Cell:
    return figure_cell(None if None in (value, reference) else value - reference, lambda v: signed(v, 1))


def difference_points(value: float | None, reference: float | None) -> Cell:
    return figure_cell(None if None in (value, reference) else 100 * (value - reference), lambda v: signed(v, 1, " pt"))


def time_by_category_table(results: Results) -> Table:
    title = "Generation time by category"
    return by_category_table(results, "time-by-category", title, "seconds_mean", number, difference_percent, ", s")


def length_by_category_table(results: Results) -> Table:
    title = "Response length by category"
    return by_category_table(
        results, "length-by-category", title, "new_tokens_mean", one_decimal, difference_tokens, ", tokens"
    )


def success_by_category_table(results: Results) -> Table:
    title = "Success by category"
    return by_category_table(results, "success-by-category", title, "succeeded", share, difference_points, "")
