"""The effect of calibration samples on a method: KL over texts and seeds, and over samples that are bad on purpose.

Two methods are ranked only if they differ by more than the range of KL over texts and seeds, any of which somebody
could have chosen with equal right. Cells with bad samples stand beside them, with the faults that the check
`calibration` finds in each. Writes calibration_study.{json,parquet,csv,svg,png}.
"""

import json
from pathlib import Path
from typing import cast

import numpy
import pandas

from quantharm.common.constants import BASELINE
from quantharm.common.files import read_json, replacing, write_json, write_parquet
from quantharm.common.paired import flat, paired_figures
from quantharm.common.prompts import Prompt, read_prompts
from quantharm.common.records.checks import CalibrationEvidence
from quantharm.common.records.studies import (
    CalibrationCell,
    CalibrationRow,
    Comparison,
    QuantizedFigures,
    Spread,
)
from quantharm.common.stage import begin_offline_stage, run_stage, stage_parser
from quantharm.common.text import read_text
from quantharm.models.loading import load_cell, load_tokenizer, quiet, read_quantization
from quantharm.quantizers import calibration
from quantharm.quantizers.calibration_evidence import TextAndPromptsRecords, calibration_evidence


def evidence_of(folder: Path, model: Path, text: str, prompts: list[Prompt]) -> CalibrationEvidence:
    """The evidence of one cell that the check `calibration` judges."""
    from quantharm.scoring.forward import output_head

    record = read_quantization(folder / "quantization.json")
    loaded = load_cell(record, "cpu")
    records: TextAndPromptsRecords = {
        "perplexity": read_json(folder / "perplexity.json"),
        "generation": read_json(model / BASELINE / "generation.json"),
    }
    tokenizer = load_tokenizer(record["source"])
    evidence = calibration_evidence(record, loaded, output_head(loaded), tokenizer, records, text, prompts)
    assert evidence is not None  # the study holds methods that calibrate only
    return evidence


def study_rows(model: Path, cells: list[CalibrationCell], text: str, prompts: list[Prompt]) -> list[CalibrationRow]:
    """A row a cell: its calibration samples, its cost, and the faults that the check `calibration` finds."""
    rows: list[CalibrationRow] = []
    for cell in cells:
        folder = model / cell["cell"]
        evidence = evidence_of(folder, model, text, prompts)
        rows.append(
            {
                **cell,
                **cast(QuantizedFigures, paired_figures(folder, model / BASELINE, "quantized")),
                "samples_reached": evidence["samples_reached"],
                "tokens_reached": evidence["tokens_reached"],
                "duplicate_samples": evidence["duplicate_samples"],
                "distinct_tokens": evidence["distinct_tokens"],
                "overlaps": evidence["overlaps"],
                "nll_ratio": evidence["nll_mean_nats"] / evidence["text_nll_mean_nats"],
                "faults": calibration.faults(evidence),
            }
        )
    return rows


def spread_of(rows: list[CalibrationRow]) -> Spread:
    """{cells, mean, standard_deviation, range, within_texts} of mean KL over the honest choices, in nats.

    within_texts: the mean over texts of the standard deviation over seeds alone.
    """
    honest = [row for row in rows if row["corruption"] is None]
    values = [row["quantized_kl_nats_mean"] for row in honest]
    texts = dict.fromkeys(row["text"] for row in honest)
    seeds = [[row["quantized_kl_nats_mean"] for row in honest if row["text"] == text] for text in texts]
    return {
        "cells": len(values),
        "mean": float(numpy.mean(values)),
        "standard_deviation": float(numpy.std(values, ddof=1)),
        "range": float(max(values) - min(values)),
        "within_texts": float(numpy.mean([numpy.std(v, ddof=1) for v in seeds])),
    }


def comparisons(model: Path, method: str, spread: Spread, others: list[str]) -> list[Comparison]:
    """The default run's method against each other method: the difference of mean KL beside the spread."""
    own = read_json(model / method / "divergence.json")["kl_nats"]["mean"]
    compared: list[Comparison] = []
    for other in others:
        difference = own - read_json(model / other / "divergence.json")["kl_nats"]["mean"]
        ranked = abs(difference) > spread["range"]
        compared.append({"method": method, "other": other, "difference_nats": difference, "ranked": ranked})
    return compared


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="results folder of the model")
    parser.add_argument(
        "--cells", type=json.loads, required=True, help="[{method, text, seed, corruption, cell}], JSON"
    )
    parser.add_argument("--others", nargs="*", default=[], help="methods to compare with")
    parser.add_argument("--text", type=Path, required=True, help="evaluation text")
    parser.add_argument("--prompts", type=Path, required=True, help="prompt suite")
    parser.add_argument(
        "--output", type=Path, required=True, help="calibration_study.json; its neighbours get other suffixes"
    )
    arguments = parser.parse_args()
    begin_offline_stage()
    quiet()
    from quantharm.reporting.charts.base import write_figure
    from quantharm.reporting.charts.studies import calibration_chart

    model = arguments.model
    rows = study_rows(model, arguments.cells, read_text(arguments.text), read_prompts(arguments.prompts))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    spreads = {method: spread_of([row for row in rows if row["method"] == method]) for method in methods}
    compared = [c for method in methods for c in comparisons(model, method, spreads[method], arguments.others)]
    defaults = {
        name: read_json(model / name / "divergence.json")["kl_nats"]["mean"] for name in [*methods, *arguments.others]
    }
    table = pandas.DataFrame([flat({**row, "faults": "; ".join(row["faults"])}) for row in rows])
    folder, name = arguments.output.parent, arguments.output.stem
    write_figure(folder, calibration_chart(rows, defaults))
    write_parquet(folder / f"{name}.parquet", table)
    with replacing(folder / f"{name}.csv") as path:
        table.to_csv(path, index=False)
    write_json(
        arguments.output,
        {
            "model": model.name,
            "rows": rows,
            "spread_kl_nats": spreads,
            "comparisons": compared,
            "kl_nats_mean": defaults,
        },
    )
    shown = ["cell", "quantized_perplexity_change_percent", "quantized_kl_nats_mean", "nll_ratio", "faults"]
    print(table[shown].to_string(index=False, float_format="{:.4g}".format))
    for method, spread in spreads.items():
        print(f"{method}: KL over {spread['cells']} choices {spread['mean']:.4g}, range {spread['range']:.2g} nats")
    for c in compared:
        words = "more than the range" if c["ranked"] else "inside the range of calibration choices: no ranking"
        print(f"{c['method']} - {c['other']}: {c['difference_nats']:+.4g} nats, {words}")


if __name__ == "__main__":
    run_stage(main)
