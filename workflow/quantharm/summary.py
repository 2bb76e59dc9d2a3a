"""All cells of one model (or of several models) as one table: a row a cell, every figure of its result files.

Differences from the baseline are paired: ΔPPL over the same windows, flips over the same prompts. Writes
summary.parquet, summary.csv and summary.json; given summaries instead of cells, joins them. Cells that could not be
finished are rows, too: their column `left_out` says why, and their figures are missing.
"""

import json
from pathlib import Path

import pandas

from quantharm.common.constants import BASELINE
from quantharm.common.errors import UserError
from quantharm.common.files import read_json, replacing, write_json, write_parquet
from quantharm.common.left_out import LeftOut, name, sentence
from quantharm.common.paired import flat
from quantharm.common.records.summary import (
    SummaryRow,
)
from quantharm.common.stage import run_stage, stage_parser
from quantharm.reporting.summary_row import summarise_cell
from quantharm.reporting.summary_tasks import NO_TASKS, task_figures

NULLABLE = {"i": "Int64", "b": "boolean"}  # pandas' types that hold missing values, by the kind of those that do not


def table_of(rows: list[SummaryRow], left_out: list[LeftOut]) -> pandas.DataFrame:
    """A row a cell, with those that are left out by name and the reason in the column `left_out`."""
    absent = [entry for entry in left_out if not entry["compared"]]
    names = pandas.DataFrame(
        {
            "model": [entry["model"] for entry in absent],
            "method": [entry["method"] for entry in absent],
            "left_out": [sentence(entry) for entry in absent],
        }
    )
    if not rows:
        return names
    table = pandas.DataFrame([flat(row) for row in rows])
    reasons = {(entry["model"], entry["method"]): sentence(entry) for entry in left_out}
    table["left_out"] = [reasons.get(key) for key in zip(table["model"], table["method"], strict=True)]
    if not absent:
        return table
    whole = {column: NULLABLE[dtype.kind] for column, dtype in table.dtypes.items() if dtype.kind in NULLABLE}
    table = table.astype(whole)
    return pandas.concat([table, names.reindex(columns=table.columns).astype(table.dtypes)], ignore_index=True)


def megabytes(sizes: pandas.Series) -> pandas.Series:
    """Sizes in MB as text; empty where there is none."""
    return sizes.map(lambda size: "" if pandas.isna(size) else f"{size / 1e6:.1f}")


def short_table(table: pandas.DataFrame) -> str:
    """The table of the compared cells that a terminal shows at the end of a run."""
    if not len(table):
        return "No cell could be compared."
    shown = pandas.DataFrame(
        {
            "model": table["model"],
            "method": table["method"],
            "disk, MB": megabytes(table["checkpoint_bytes"]),
            "loaded, MB": megabytes(table["weight_bytes"]),
            "bits": table["bits_per_weight"].map(lambda bits: "" if pandas.isna(bits) else f"{bits:.2f}"),
            "perplexity": table["perplexity"].map("{:.3f}".format),
            "change, %": table["perplexity_change_percent"].map("{:+.2f}".format),
            "KL, nats": [
                f"{'≥ ' if row.get('kl_is_lower_bound') is True else ''}{row['kl_nats_mean']:.2g}"
                for row in table.to_dict("records")
            ],
            "top-1": table["top1_agreement"].map("{:.1%}".format),
            "decode, tokens/s": table["decode_tokens_per_second_median"].map("{:.1f}".format),
            "checks": table["checks_failed"].map(lambda names: f"FAILED: {names}" if names else "passed"),
            "integrity": table["integrity_verified"].map({True: "no finding", False: "FINDING"}).fillna("missing"),
        }
    )
    text = shown.to_string(index=False)
    synthetic = list(dict.fromkeys(table.loc[table["synthetic"], "model"]))
    if synthetic:
        text += f"\nSynthetic weights: the quality figures of {', '.join(synthetic)} are of random numbers."
    return text


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--cells", type=Path, nargs="*", help="folders of one model's cells, the baseline's first")
    parser.add_argument("--tasks", action="store_true", help="the cells answered tasks")
    parser.add_argument("--summaries", type=Path, nargs="*", help="or summary.json files of several models")
    parser.add_argument("--left-out", type=json.loads, default=[], help="JSON: the cells that could not be finished")
    parser.add_argument("--json", type=Path, help="summary.json")
    parser.add_argument("--parquet", type=Path, required=True, help="summary.parquet")
    parser.add_argument("--csv", type=Path, required=True, help="summary.csv")
    arguments = parser.parse_args()
    if arguments.cells is None and arguments.summaries is None:
        parser.error("name --cells or --summaries")
    left_out: list[LeftOut] = arguments.left_out
    if arguments.summaries is not None:
        summaries = [read_json(path) for path in arguments.summaries]
        rows = [row for summary in summaries for row in summary["cells"]]
        left_out = [entry for summary in summaries for entry in summary.get("left_out", [])] + left_out
    else:
        baselines = [cell for cell in arguments.cells if cell.name == BASELINE]
        if not baselines and arguments.cells:
            raise UserError(f"no cell `{BASELINE}` is among {', '.join(map(str, arguments.cells))}; add the method")
        lacking = {entry["method"] for entry in left_out if entry["compared"]}
        answered = task_figures(arguments.cells) if arguments.tasks else {}
        rows = [
            summarise_cell(cell, baselines[0], cell.name not in lacking, answered.get(cell.name, NO_TASKS))
            for cell in arguments.cells
        ]
    table = table_of(rows, left_out)
    write_parquet(arguments.parquet, table)
    with replacing(arguments.csv) as path:
        table.to_csv(path, index=False)
    if arguments.json:
        write_json(arguments.json, {"cells": rows, "left_out": left_out})
    print(short_table(table.head(len(rows))))
    for entry in left_out:
        print(f"Left out: {name(entry)}: {sentence(entry)}" + (f" ({entry['log']})" if entry["log"] else ""))


if __name__ == "__main__":
    run_stage(main)
