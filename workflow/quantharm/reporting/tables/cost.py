"""Tables of what a method gains or costs in bytes and seconds."""

from typing import Any

from quantharm.reporting.format import fixed, number, percent, share, signed, size, size_unit
from quantharm.reporting.results import Cell as MethodCell
from quantharm.reporting.results import Results
from quantharm.reporting.tables.quality import METHOD, mark
from quantharm.reporting.tables.table import Cell, Column, Table, figure_cell, name_cell, text_cell

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
    rows = []
    for cell in results.cells:
        row, record = cell.row, cell.quantization
        own = cell is results.baseline

        def in_unit(value, scale=scale):
            return fixed(value / scale, 2)

        rows.append(
            [
                name_cell(cell.method, cell.failed),
                figure_cell(row["checkpoint_bytes"], in_unit),
                figure_cell(row["weight_bytes"], in_unit),
                figure_cell(formula_bytes(cell, results), in_unit),
                figure_cell(row["compression"], lambda v: f"{fixed(v, 2)}×"),
                text_cell("–")
                if own
                else figure_cell(row["saved_bytes"], in_unit, aside=percent_saved(row, results.baseline.row)),
                Cell(
                    number(row["bits_per_weight"], 4)
                    if row["bits_per_weight"]
                    else f"{bits_of(record)}, not quantized",
                    row["bits_per_weight"],
                ),
                figure_cell(row["bits_per_weight_formula"], lambda v: number(v, 4)),
                Cell(f"{len(record['quantized_modules'])} of {linear_count(record)}", len(record["quantized_modules"])),
            ]
        )
    columns = [
        METHOD,
        Column("checkpoint_bytes", f"On disk, {unit}"),
        Column("weight_bytes", f"Loaded, {unit}"),
        Column("formula_bytes", f"By the formula, {unit}"),
        Column("compression", "Compression"),
        Column("saved_bytes", f"Saved, {unit}"),
        Column("bits_per_weight", "Bits a weight"),
        Column("bits_per_weight_formula", "By the formula"),
        Column("quantized_matrices", "Matrices quantized"),
    ]
    parameters = results.baseline.quantization["parameters"]
    note = (
        f"{unit} is 10{'⁹' if unit == 'GB' else '⁶'} bytes. Compression and savings compare loaded weights. Bits a "
        "weight count the quantized matrices with their scales; everything else stays at the baseline's dtype. In "
        f"float32 the model would take {size(4 * parameters)} (four bytes for each of {parameters:,} parameters: "
        "computed, not measured)."
    )
    return Table("sizes", "Size and compression", columns, rows, note)


def percent_saved(row: dict[str, Any], baseline: dict[str, Any]) -> str:
    return f"({fixed(100 * row['saved_bytes'] / baseline['weight_bytes'], 1)}\u00a0%)"


def linear_count(record: dict[str, Any]) -> int:
    return len(record["quantized_modules"]) + len(record["kept_modules"])


def memory_table(results: Results) -> Table:
    on_gpu = results.baseline.generation["provenance"]["device_type"] == "cuda"
    rows = []
    for cell in results.cells:
        memory = cell.generation["memory"]
        saved = 100 * (cell.row["weight_bytes"] / results.baseline.row["weight_bytes"] - 1)
        rows.append(
            [
                name_cell(cell.method, cell.failed),
                Cell(size(cell.row["weight_bytes"]), cell.row["weight_bytes"]),
                text_cell("–") if cell is results.baseline else figure_cell(saved, lambda v: percent(v, 1)),
                *[
                    Cell(size(memory.get(key)), memory.get(key))
                    for key in ("allocated_bytes", "reserved_bytes", "peak_bytes", "host_peak_bytes")
                ],
            ]
        )
    columns = [
        METHOD,
        Column("weight_bytes", "Weights loaded"),
        Column("weight_change_percent", "Against the baseline"),
        Column("allocated_bytes", "GPU allocated"),
        Column("reserved_bytes", "GPU reserved, peak"),
        Column("peak_bytes", "GPU peak when generating" if on_gpu else "Peak of the process"),
        Column("host_peak_bytes", "Host process, peak with loading"),
    ]
    note = "" if on_gpu else "This run had no GPU: the peak is the whole process, with libraries and loading."
    return Table("memory", "Memory when generating", columns, rows, note)


def by_category_table(
    results: Results, key: str, title: str, figure: str, show, difference, unit: str, overall: str
) -> Table:
    """Baseline first, then each method, then each method's difference; the last row is the mean of all prompts."""
    rows = []
    for category in [*results.categories, None]:
        figures = [value_of(cell, category, figure) for cell in results.cells]
        reference = figures[0]
        changes = [difference(value, reference) for value in figures[1:]]
        name = category or overall
        rows.append([Cell(name, name, header=True), *[figure_cell(v, show) for v in figures], *changes])
    methods = [Column(f"{figure}/{cell.method}", f"{cell.method}{mark(cell)}{unit}") for cell in results.cells]
    changed = [Column(f"{figure}_change/{cell.method}", f"Δ {cell.method}{mark(cell)}") for cell in results.methods]
    return Table(key, title, [Column("category", "Category", "left"), *methods, *changed], rows, last_is_total=True)


def value_of(cell: MethodCell, category: str | None, figure: str) -> float | None:
    """A figure of one category, or of all prompts; `succeeded` as a share."""
    record = cell.generation if category is None else cell.generation["by_category"].get(category)
    if record is None:
        return None
    return record["succeeded"] / record["prompts"] if figure == "succeeded" else record[figure]


def difference_percent(value: float | None, reference: float | None) -> Cell:
    change = None if value is None or not reference else 100 * (value / reference - 1)
    return figure_cell(change, lambda v: percent(v, 1))


def difference_tokens(value: float | None, reference: float | None) -> Cell:
    return figure_cell(None if None in (value, reference) else value - reference, lambda v: signed(v, 1))


def difference_points(value: float | None, reference: float | None) -> Cell:
    return figure_cell(None if None in (value, reference) else 100 * (value - reference), lambda v: signed(v, 1, " pt"))


def time_by_category_table(results: Results) -> Table:
    return by_category_table(
        results,
        "time-by-category",
        "Generation time by category",
        "seconds_mean",
        number,
        difference_percent,
        ", s",
        "All prompts",
    )


def length_by_category_table(results: Results) -> Table:
    return by_category_table(
        results,
        "length-by-category",
        "Response length by category",
        "new_tokens_mean",
        lambda v: fixed(v, 1),
        difference_tokens,
        ", tokens",
        "All prompts",
    )


def success_by_category_table(results: Results) -> Table:
    return by_category_table(
        results, "success-by-category", "Success by category", "succeeded", share, difference_points, "", "All prompts"
    )
