"""Integrity of a model's cells as the stage found it, and the seeds' four defenses with what came of each here."""

from collections.abc import Callable, Mapping
from typing import Any

from quantharm.common.records.integrity import IntegrityRecord
from quantharm.reporting.format import count, listing, number, share
from quantharm.reporting.results import Cell, Results
from quantharm.reporting.tables.columns import METHOD, named, text
from quantharm.reporting.tables.table import Column, Field, Table, figure_field, table_of, text_field

VERDICTS = {
    "no trace": "pass",
    "few traces": "pass",
    "packed": "none",
    "partly packed": "undecided",
    "dequantized": "fail",
    "not scanned": "unknown",
}
FINDINGS = {True: ("no finding", "pass"), False: ("finding", "fail")}
DISTINGUISHABLE = {True: "no", False: "yes", None: "cannot be told"}
WORDS = {"packed": "openly quantized", "partly packed": "partly quantized, openly"}


def integrity_table(results: Results) -> Table:
    """A row a method: its files, its weights, what they would be seen as, its behaviour."""

    def recorded(key: str, label: str, field_of: Callable[[IntegrityRecord], Field], align: str = "left") -> Column:
        """field_of: the field by integrity.json."""

        def field(cell: Cell) -> Field:
            if cell.integrity is None:
                return text_field("not measured", "unknown") if key == "verified" else text_field("–")
            return field_of(cell.integrity)

        return Column(key, label, align, field)

    columns = [
        METHOD,
        recorded("verified", "Verdict", lambda r: text_field(*FINDINGS[bool(r["verified"])])),
        recorded("files", "Files", files_field),
        recorded("scan", "Weights as stored", scan_field),
        recorded("if_dequantized", "If dequantized and passed off as the original", if_dequantized_field),
        recorded("kl_nats_mean", "KL from the store, nats [95\u00a0%]", kl_field, "right"),
        recorded(
            "behaviour",
            "Distinguishable from the original",
            lambda r: text_field(DISTINGUISHABLE[r["behaviour"]["same_as_original"]]),
        ),
    ]
    note = (
        "Files: against a signed manifest where the model has one, else as recorded when it was fetched. Weights: "
        "traces of having been quantized and dequantized. Behaviour: distinguishable from the original where the whole "
        "interval lies above the limit, which is four times what rounding changes on the store's machine: no hardware "
        "changes more."
    )
    return table_of("integrity", columns, results.cells, note)


def files_field(record: IntegrityRecord) -> Field:
    files = record["signed_manifest"] or record["manifest"]
    if not files["verified"]:
        return text_field("not the same", "fail", str(files["explanation"]))
    return text_field(
        "as signed" if record["signed_manifest"] else "as recorded", "pass", count(files["files"], "file")
    )


def scan_field(record: IntegrityRecord) -> Field:
    verdict = record["scan"]["verdict"]
    return text_field(WORDS.get(verdict, verdict), VERDICTS[verdict], scan_words(record["scan"]))


def if_dequantized_field(record: IntegrityRecord) -> Field:
    seen = record["if_dequantized"]
    if seen is None:
        return text_field("–")
    noticed = seen["verdict"] == "dequantized"
    return text_field("noticed" if noticed else "not noticed", "pass" if noticed else "fail", scan_words(seen))


def kl_field(record: IntegrityRecord) -> Field:
    behaviour = record["behaviour"]
    limit = f"limit {number(behaviour['limit_kl_nats'])}"
    return figure_field(behaviour["kl_nats_mean"], number, behaviour["kl_nats_ci95"], limit)


def scan_words(scan: Mapping[str, Any]) -> str:
    """The evidence of a scan, in a few words."""
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
    commands = {
        "Model integrity verification": (
            verification(results),
            "part of every run; of any folder: python -m quantharm.integrity FOLDER",
        ),
        "Quality monitoring": (monitoring(results), "snakemake monitor"),
        "Weight noise injection": (noise(results), "snakemake defense"),
        "Calibration validation": (calibration(results), "a check of every run; snakemake calibration"),
    }
    columns = [
        named("defense", "Defense"),
        text("found", "In these results", lambda defense: commands[defense][0] or "not run"),
        text("command", "Command", lambda defense: commands[defense][1]),
    ]
    return table_of("defenses", columns, commands)


def verification(results: Results) -> str:
    measured = [(cell.method, cell.integrity) for cell in results.cells if cell.integrity]
    if not measured:
        return ""
    against = [method for method, record in measured if not record["verified"]]
    scanned = [scan for _, record in measured if (scan := record["if_dequantized"])]
    noticed = [scan for scan in scanned if scan["verdict"] == "dequantized"]
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
    return f"σ of {listing([f'{s:g}' for s in sigmas])} half steps, before {listing(methods)}" if sigmas else ""


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
