"""Reads the finished result files of one model.

Cells that did not run on one device, in one dtype and under one protocol are refused: their figures are not comparable.
"""

from pathlib import Path

from quantharm.common.constants import BASELINE
from quantharm.common.errors import UserError
from quantharm.common.files import read_json, read_parquet
from quantharm.common.left_out import LeftOut
from quantharm.common.provenance import computed_differently
from quantharm.common.records.summary import SummaryRow
from quantharm.reporting.differences import (
    Changes,
    kl_differences,
    process_spread,
    prompt_changes,
    prompts_spread,
    speed_changes,
)
from quantharm.reporting.results import Cell, Results
from quantharm.reporting.thresholds import Thresholds

STAGES = ("generation", "perplexity", "divergence")


def read_cell(folder: Path, row: SummaryRow) -> Cell:
    records = {stage: read_json(folder / f"{stage}.json") for stage in ("quantization", *STAGES, "checks")}
    integrity = folder / "integrity.json"
    measured = integrity.is_file() and row.get("integrity_verified", True) is not None  # else it is of an earlier run
    return Cell(row["method"], row, **records, integrity=read_json(integrity) if measured else None, folder=folder)


def read_results(folder: Path, thresholds: Thresholds) -> Results:
    """The results of one model, by the config's `report:`; raises UserError where cells cannot be compared."""
    summary = read_json(folder / "summary.json")
    rows = summary["cells"]
    cells = [read_cell(folder / row["method"], row) for row in rows]
    cells.sort(key=lambda cell: cell.method != BASELINE)
    if not cells or cells[0].method != BASELINE:
        raise UserError(f"{folder}/summary.json has no cell `{BASELINE}`; run the stage `summary` again")
    require_comparable(cells)
    for cell in cells[1:]:
        cell.changes = changes_from_baseline(cell, cells[0], thresholds["speed_process_spread_percent"])
    study, noise = folder / "calibration_study.json", folder / "noise_sweep.json"
    history = folder / "monitor/history.parquet"
    results = Results(
        rows[0]["model"],
        folder,
        cells,
        thresholds,
        left_out=summary.get("left_out", []),
        calibration_study=read_json(study) if study.is_file() else None,
        noise_study=read_json(noise)["rows"] if noise.is_file() else None,
        monitor_history=read_parquet(history) if history.is_file() else None,
    )
    folders = {cell.method: cell.folder for cell in results.methods}
    results.kl_differences = kl_differences(folders, results.calibration_ranges, results.least_kl)
    return results


def read_models(folders: list[Path], thresholds: Thresholds) -> tuple[list[Results], list[LeftOut]]:
    """(the results of each model of which a cell can be compared, what the summaries of all of them lack)."""
    summaries = [read_json(folder / "summary.json") for folder in folders]
    left_out = [entry for summary in summaries for entry in summary.get("left_out", [])]
    compared = [folder for folder, summary in zip(folders, summaries, strict=True) if summary["cells"]]
    return [read_results(folder, thresholds) for folder in compared], left_out


def changes_from_baseline(cell: Cell, baseline: Cell, spreads: dict[str, float]) -> Changes:
    """{figure: (change, 95 % interval)} over prompts and of the benchmark."""
    device = cell.generation["provenance"]["device_type"]
    mine, reference = cell.generation["benchmark"], baseline.generation["benchmark"]
    spread = process_spread(*(prompts_spread(c.generation, device, spreads) for c in (cell, baseline)))
    over_prompts = prompt_changes(cell.folder, baseline.folder, spread)
    return over_prompts | speed_changes(mine, reference, device, spreads)


def require_comparable(cells: list[Cell]) -> None:
    """One device, one dtype and one way to compute in every stage of every cell, one perplexity protocol."""
    baseline = cells[0]
    for cell in cells:
        for stage in STAGES:
            differing = computed_differently(getattr(cell, stage)["provenance"], baseline.generation["provenance"])
            for key, (mine, reference) in differing.items():
                raise UserError(
                    f"{cell.row['model']} × {cell.method} ran its stage {stage} with {key} {mine!r} and the "
                    f"baseline with {reference!r}: a report does not compare the two; run all cells on one device"
                )
        if cell.perplexity["protocol"] != baseline.perplexity["protocol"]:
            raise UserError(
                f"{cell.row['model']} × {cell.method} was scored with protocol {cell.perplexity['protocol']} and the "
                f"baseline with {baseline.perplexity['protocol']}: delete both perplexity.json and run again"
            )
