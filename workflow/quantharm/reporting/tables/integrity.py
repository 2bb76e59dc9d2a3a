"""Integrity of a model's cells as the stage found it, and the seeds' four defenses with what came of each here."""

from typing import Any

from quantharm.reporting.format import count, interval, listing, number, share
from quantharm.reporting.results import Cell as MethodCell
from quantharm.reporting.results import Results
from quantharm.reporting.tables.columns import METHOD
from quantharm.reporting.tables.table import Cell, Column, Table, name_cell, text_cell

VERDICTS = {
    "no trace": "pass",
    "few traces": "pass",
    "packed": "none",
    "partly packed": "undecided",
    "dequantized": "fail",
    "not scanned": "unknown",
}
WORDS = {"packed": "openly quantized", "partly packed": "partly quantized, openly"}


def integrity_table(results: Results) -> Table:
    """A row a method: its files, its weights, what they would be seen as, its behaviour."""
    columns = [
        METHOD,
        Column("verified", "Verdict", "left"),
        Column("files", "Files", "left"),
        Column("scan", "Weights as stored", "left"),
        Column("if_dequantized", "If dequantized and handed on", "left"),
        Column("kl_nats_mean", "KL from the store, nats [95\u00a0%]"),
        Column("behaviour", "Told from the original by it", "left"),
    ]
    note = (
        "Files: against a signed manifest where the model has one, else as recorded when it was fetched. Weights: "
        "traces of having been quantized and dequantized. Behaviour: told from the original where the whole interval "
        "lies above the limit, four times what rounding changes on the store's machine: no hardware changes more."
    )
    return Table("integrity", "Integrity", columns, [integrity_row(cell) for cell in results.cells], note)


def integrity_row(cell: MethodCell) -> list[Cell]:
    name, record = name_cell(cell.method, cell.failed), cell.integrity
    if record is None:
        return [name, text_cell("not measured", "unknown"), *[text_cell("–")] * 5]
    files, scan, seen = record["signed_manifest"] or record["manifest"], record["scan"], record["if_dequantized"]
    behaviour = record["behaviour"]
    verdict = text_cell("no finding", "pass") if record["verified"] else text_cell("finding", "fail")
    return [
        name,
        verdict,
        text_cell("as signed" if record["signed_manifest"] else "as recorded", "pass", count(files["files"], "file"))
        if files["verified"]
        else text_cell("not the same", "fail", str(files["explanation"])),
        text_cell(WORDS.get(scan["verdict"], scan["verdict"]), VERDICTS[scan["verdict"]], scan_words(scan)),
        text_cell("–")
        if seen is None
        else text_cell("noticed", "pass", scan_words(seen))
        if seen["verdict"] == "dequantized"
        else text_cell("not noticed", "fail", scan_words(seen)),
        Cell(
            number(behaviour["kl_nats_mean"]),
            behaviour["kl_nats_mean"],
            behaviour["kl_nats_ci95"],
            f"{interval(behaviour['kl_nats_ci95'])} limit {number(behaviour['limit_kl_nats'])}".strip(),
        ),
        text_cell({True: "no", False: "yes", None: "cannot be told"}[behaviour["same_as_original"]]),
    ]


def scan_words(scan: dict[str, Any]) -> str:
    """What a scan rests on, short."""
    if scan["verdict"] in ("packed", "partly packed"):
        counted = "matrices_packed" in scan and "matrices_scanned" in scan
        of = f": {scan['matrices_packed']} of {scan['matrices_packed'] + scan['matrices_scanned']}" if counted else ""
        return f"{scan['method']}{of}"
    if "matrices_scanned" not in scan:
        return ""
    of = f"{scan['matrices_with_trace']} of {count(scan['matrices_scanned'], 'matrix', 'matrices')}"
    if scan["verdict"] != "dequantized":
        return of
    group = {"whole": "by row or column", None: ""}.get(scan["group_size"], f"groups of {scan['group_size']}")
    agreeing = scan.get("share_agreeing")
    alike = "" if agreeing is None else f"{share(agreeing)} of their weights alike"
    return f"{of}: {', '.join(filter(None, [scan['method'], group, alike]))}"


def integrity_findings(results: Results) -> list[tuple[str, str]]:
    """(method, what was found) of each cell with something against it."""
    return [
        (cell.method, str(cell.integrity["explanation"]))
        for cell in results.cells
        if cell.integrity and not cell.integrity["verified"]
    ]


def defenses_table(results: Results) -> Table:
    """The defenses that the threat model asks for, and what these results hold of each."""
    rows = [
        [Cell(name, name, header=True), text_cell(found or "not run"), text_cell(command)]
        for name, found, command in (
            ("Model integrity verification", verification(results), "part of every run; of any folder: "
             "python -m quantharm.integrity FOLDER"),
            ("Quality monitoring", monitoring(results), "snakemake monitor"),
            ("Weight noise injection", noise(results), "snakemake defense"),
            ("Calibration validation", calibration(results), "a check of every run; snakemake calibration"),
        )
    ]  # fmt: skip
    columns = [
        Column("defense", "Defense", "left"),
        Column("found", "In these results", "left"),
        Column("command", "Made by", "left"),
    ]
    return Table("defenses", "Defenses", columns, rows)


def verification(results: Results) -> str:
    measured = [cell for cell in results.cells if cell.integrity]
    if not measured:
        return ""
    against = [cell.method for cell in measured if not cell.integrity["verified"]]
    scanned = [cell for cell in measured if cell.integrity["if_dequantized"]]
    noticed = [cell for cell in scanned if cell.integrity["if_dequantized"]["verdict"] == "dequantized"]
    first = f"findings against {listing(against)}" if against else f"{count(len(measured), 'checkpoint')}, no finding"
    return first + (f"; dequantized, {len(noticed)} of {len(scanned)} would be noticed" if scanned else "")


def monitoring(results: Results) -> str:
    history = results.monitor_history
    if history is None:
        return ""
    last = "an alarm" if history["alarm"].iloc[-1] else "no alarm"
    return f"{count(len(history), 'run')}, {count(int(history['alarm'].sum()), 'alarm')}; the last: {last}"


def noise(results: Results) -> str:
    rows = results.noise_study or []
    sigmas = sorted({row["sigma_half_widths"] for row in rows if row["sigma_half_widths"]})
    methods = list(dict.fromkeys(row["method"] for row in rows))
    return f"σ of {listing([f'{s:g}' for s in sigmas])} half-widths, before {listing(methods)}" if sigmas else ""


def calibration(results: Results) -> str:
    states = {
        cell.method: check["status"]
        for cell in results.methods
        for check in cell.checks["checks"]
        if check["name"] == "calibration" and check["status"] != "skipped"
    }
    said = [f"{method}: check {'passed' if state == 'pass' else 'failed'}" for method, state in states.items()]
    said += [
        f"{method}: KL ranges over {number(r)} nats by the choice of samples"
        for method, r in results.calibration_ranges.items()
    ]
    return "; ".join(said)
