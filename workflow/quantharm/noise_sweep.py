"""Cost and effect of weight noise, over a sweep: a row for each method and σ, and a chart.

The cost is the change of perplexity and the KL divergence from the baseline, for the noise alone in 16 bits and for the
method after the same noise. The effect is the share of weights whose code differs from that without noise, counted in
the two checkpoints. Writes noise_sweep.{json,parquet,csv,svg,png}.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pandas

from quantharm.common.constants import BASELINE
from quantharm.common.errors import UserError
from quantharm.common.files import replacing, write_json, write_parquet
from quantharm.common.paired import flat, paired_figures
from quantharm.common.records.quantization import QuantizationRecord
from quantharm.common.records.studies import AloneFigures, NoiseCells, NoiseRow, QuantizedFigures
from quantharm.common.stage import begin_offline_stage, run_stage, stage_parser
from quantharm.models.loading import load_as_stored, quiet, read_quantization

if TYPE_CHECKING:
    from torch import Tensor


def codes_of(record: QuantizationRecord) -> "dict[str, Tensor]":
    """{matrix: its codes [rows, columns]} in a checkpoint."""
    from quantharm.quantizers import quantized_layers

    folder = Path(record["checkpoint"])
    matrices = quantized_layers.quantized_matrices(load_as_stored(record, "cpu"), folder, record["quantizer"])
    return {matrix.name: matrix.codes() for matrix in matrices if matrix.codes is not None}


def changed_codes(mine: "dict[str, Tensor]", reference: "dict[str, Tensor]") -> float | None:
    """Share of weights whose code differs; None where the format has no codes to compare."""
    if mine.keys() != reference.keys():
        raise UserError("two checkpoints of one method hold different matrices; quantize the model again")
    weights = sum(codes.numel() for codes in reference.values())
    if not weights:
        return None
    return sum(int((mine[name] != reference[name]).sum()) for name in reference) / weights


def sweep_rows(model: Path, cells: list[NoiseCells]) -> list[NoiseRow]:
    """A row for each method without noise (σ = 0), then for each of its σ."""
    baseline = model / BASELINE
    rows: list[NoiseRow] = []

    def alone(cell: Path) -> AloneFigures:
        return cast(AloneFigures, paired_figures(cell, baseline, "alone"))

    def quantized(cell: Path) -> QuantizedFigures:
        return cast(QuantizedFigures, paired_figures(cell, baseline, "quantized"))

    for method in dict.fromkeys(cell["method"] for cell in cells):
        record = read_quantization(model / method / "quantization.json")
        reference = codes_of(record)
        rows.append(
            {
                "method": method,
                "sigma_half_widths": 0.0,
                "noise_rms": 0.0,
                "codes_changed": 0.0,
                **alone(baseline),
                **quantized(model / method),
            }
        )
        for cell in (c for c in cells if c["method"] == method):
            noisy = read_quantization(model / cell["quantized"] / "quantization.json")
            rows.append(
                {
                    "method": method,
                    "sigma_half_widths": cell["sigma"],
                    "noise_rms": noisy["noise"]["noise_rms"],
                    "codes_changed": changed_codes(codes_of(noisy), reference),
                    **alone(model / cell["alone"]),
                    **quantized(model / cell["quantized"]),
                }
            )
    return rows


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="results folder of the model")
    parser.add_argument("--cells", type=json.loads, required=True, help="[{method, sigma, alone, quantized}], JSON")
    parser.add_argument("--output", type=Path, required=True, help="noise_sweep.json; beside it other suffixes")
    arguments = parser.parse_args()
    begin_offline_stage()
    quiet()
    from quantharm.reporting.charts.base import write_figure
    from quantharm.reporting.charts.studies import noise_chart

    rows = sweep_rows(arguments.model, arguments.cells)
    table = pandas.DataFrame([flat(row) for row in rows])
    folder, name = arguments.output.parent, arguments.output.stem
    write_figure(folder, noise_chart(rows))
    write_parquet(folder / f"{name}.parquet", table)
    with replacing(folder / f"{name}.csv") as path:
        table.to_csv(path, index=False)
    write_json(arguments.output, {"model": arguments.model.name, "rows": rows})
    shown = ["method", "sigma_half_widths", "codes_changed"] + [
        f"{kind}_{key}" for kind in ("alone", "quantized") for key in ("perplexity_change_percent", "kl_nats_mean")
    ]
    print(table[shown].to_string(index=False, float_format="{:.4g}".format))


if __name__ == "__main__":
    run_stage(main)
