"""Downloads the data of a model's tasks into the cache of data sets, and records it.

Uses the network for missing data; the stage `tasks` then runs without one. A task that does not exist, or cannot be
asked, is refused here, before anything is computed.
"""

import json
from pathlib import Path

from quantharm.common.errors import UserError
from quantharm.common.files import write_json
from quantharm.common.stage import run_stage, stage_parser
from quantharm.common.versions import version_of
from quantharm.models.hub import why_unreachable


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--tasks", type=json.loads, required=True, help="JSON: [{task, few_shot, limit, metric}]")
    parser.add_argument("--folder", type=Path, help="of YAML tasks beside lm-evaluation-harness's own")
    parser.add_argument("--seed", type=int, default=0, help="of the examples that are drawn")
    parser.add_argument("--output", type=Path, required=True, help="task_data.json")
    arguments = parser.parse_args()
    try:
        from quantharm.harness import task_list
    except ImportError as error:
        raise UserError(
            f"`tasks:` needs lm-evaluation-harness, which cannot be imported ({error}); install what "
            "envs/evaluation.txt lists into the interpreter that `python:` names"
        ) from None
    task_list.quiet()
    index = task_list.find_tasks([entry["task"] for entry in arguments.tasks], arguments.folder)
    unreachable = why_unreachable()  # the hub's client then takes data from the cache
    record = {}
    for entry in arguments.tasks:
        tasks = task_list.load_task(index, entry, arguments.seed, unreachable)
        record[entry["task"]] = [
            {
                "subtask": name,
                "dataset": tasks[name].get_config("dataset_path"),
                "configuration": tasks[name].get_config("dataset_name"),
                "items": items,
            }
            for name, items in task_list.items_of(tasks, entry["limit"])
        ]
    write_json(arguments.output, {"lm_eval": version_of("lm_eval"), "tasks": record})
    for name, parts in record.items():
        print(f"{name}: {sum(part['items'] for part in parts):,} items")


if __name__ == "__main__":
    run_stage(main)
