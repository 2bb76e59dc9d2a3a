"""A section for the model card of a quantized model, with metadata for a hub (`model-index`), and a badge.

All figures come from finished records. A cell that failed a check, or has random weights, gets no metadata.
"""

import json
from pathlib import Path

from quantharm.common.constants import BASELINE
from quantharm.common.errors import UserError
from quantharm.common.files import read_json, write_text
from quantharm.common.records.summary import SummaryRow
from quantharm.common.stage import run_stage, stage_parser
from quantharm.publishing.badge import badge
from quantharm.publishing.model_index import card_of, results_of
from quantharm.publishing.protocol import protocol_of, protocol_sha256
from quantharm.publishing.section import CellRecords, section
from quantharm.reporting.format import number, percent
from quantharm.reporting.thresholds import Scale
from quantharm.reporting.verdicts import level_of


def badge_of(row: SummaryRow, limits: Scale) -> str:
    """limits: the config's `report.kl_nats`."""
    left = f"quantharm {row['method']}"
    if row["checks_failed"]:
        return badge(left, "failed checks", "failed")
    if row["synthetic"]:
        return badge(left, "random weights", "unknown")
    bound = row.get("kl_is_lower_bound")  # a lower bound does not show that KL is small
    kl = f"KL {'≥ ' if bound else ''}{number(row['kl_nats_mean'], 2)} nats"
    right = f"{kl}, perplexity {percent(row['perplexity_change_percent'], 1)}"
    return badge(left, right, "unknown" if bound else level_of(row["kl_nats_mean"], limits))


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--cell", type=Path, required=True, help="folder of the cell's result files")
    parser.add_argument("--summary", type=Path, required=True, help="summary.json of its model")
    parser.add_argument("--text-record", type=Path, required=True, help="where the evaluation text came from, JSON")
    parser.add_argument("--thresholds", type=json.loads, required=True, help="the config's `report:` as JSON")
    parser.add_argument("--badge", type=Path, required=True, help="card.svg")
    parser.add_argument("--output", type=Path, required=True, help="card.md")
    arguments = parser.parse_args()
    rows: dict[str, SummaryRow] = {row["method"]: row for row in read_json(arguments.summary)["cells"]}
    method = arguments.cell.name
    if method not in rows or BASELINE not in rows:
        raise UserError(f"{arguments.summary} has no cell {method}, or no {BASELINE}; run the stage summary again")
    row, text = rows[method], read_json(arguments.text_record)
    records: CellRecords = {
        "quantization": read_json(arguments.cell / "quantization.json"),
        "generation": read_json(arguments.cell / "generation.json"),
        "perplexity": read_json(arguments.cell / "perplexity.json"),
        "checks": read_json(arguments.cell / "checks.json"),
    }
    protocol = protocol_sha256(protocol_of(records["perplexity"], records["generation"], row.get("tasks")))
    body = section(row, rows[BASELINE], records, text["text"], protocol, arguments.badge.name)
    believed = not row["checks_failed"] and not row["synthetic"]
    card = card_of(row, results_of(row, text, protocol) if believed else [], body)
    write_text(arguments.badge, badge_of(row, arguments.thresholds["kl_nats"]))
    write_text(arguments.output, str(card))
    print(f"{arguments.output}: protocol {protocol[:12]}")


if __name__ == "__main__":
    run_stage(main)
