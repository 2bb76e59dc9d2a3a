"""Prints the verdicts of the stage `budget`, and fails where a limit is breached. Writes nothing."""

from pathlib import Path

from quantharm.common.errors import UserError
from quantharm.common.files import read_json
from quantharm.common.sanitize import print_line
from quantharm.common.stage import run_stage, stage_parser
from quantharm.gating.forms import terminal_table


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--budget", type=Path, required=True, help="budget.json")
    arguments = parser.parse_args()
    record = read_json(arguments.budget)
    print(terminal_table(record["lines"]))
    for entry in record["advice"]:
        print_line(f"{entry['model']}: {entry['sentence']}")
    if not record["passed"]:
        raise UserError(f"{record['sentence']} See {arguments.budget.with_suffix('.md')}")
    print(record["sentence"])


if __name__ == "__main__":
    run_stage(main)
