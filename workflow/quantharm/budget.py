"""The config's budget: every limit on every cell, with figure, 95 % interval and verdict, and which method to ship.

Writes budget.json, budget.md and junit.xml, also where a limit is breached: `quantharm.gate` then fails.
"""

import itertools
import json
from pathlib import Path

from quantharm.common.errors import UserError
from quantharm.common.files import write_json, write_text
from quantharm.common.stage import run_stage, stage_parser
from quantharm.gating.advice import advise, outcome
from quantharm.gating.forms import junit, markdown
from quantharm.gating.judging import judged, unfinished
from quantharm.gating.limits import has_limits
from quantharm.reporting.reading import read_models


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--models", type=Path, nargs="*", default=[], help="results folders of the models")
    parser.add_argument("--left-out", type=json.loads, default=[], help="JSON: models that could not be summarised")
    parser.add_argument("--budget", type=json.loads, required=True, help="the config's `budget:` as JSON")
    parser.add_argument("--thresholds", type=json.loads, required=True, help="the config's `report:` as JSON")
    parser.add_argument("--markdown", type=Path, required=True, help="budget.md")
    parser.add_argument("--junit", type=Path, required=True, help="junit.xml")
    parser.add_argument("--output", type=Path, required=True, help="budget.json")
    arguments = parser.parse_args()
    budget = arguments.budget
    if not has_limits(budget):
        raise UserError("the config's `budget:` limits nothing; give it a limit, `kl_nats: 0.05` for example")
    models, left_out = read_models(arguments.models, arguments.thresholds)
    of_models = [judged(results, budget) for results in models]
    advice = [advise(results, lines, budget) for results, lines in zip(models, of_models, strict=True)]
    lines = [*itertools.chain(*of_models), *unfinished(arguments.left_out + left_out, budget)]
    passed, sentence = outcome(lines)
    write_text(arguments.markdown, markdown(passed, sentence, lines, advice))
    write_text(arguments.junit, junit(lines))
    write_json(
        arguments.output,
        {"passed": passed, "sentence": sentence, "advice": advice, "lines": lines, "budget": budget},
    )
    print(sentence)


if __name__ == "__main__":
    run_stage(main)
