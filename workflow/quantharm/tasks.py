"""Tasks of lm-evaluation-harness on one cell, and every answer beside the baseline's to the same item.

    accuracy = right ÷ items        recovery = accuracy ÷ the baseline's

Each request is a forward pass of its own (batch 1). Writes a row an item (tasks.parquet) and tasks.json: per task, and
over all of them with equal weight, accuracy, recovery, flips each way, McNemar's exact test, and the smallest change
that these items show with 80 % probability. The baseline's own file has accuracies alone.
"""

import json
from pathlib import Path

import pandas

from quantharm.common.accuracy import Pairs, accuracy_interval, compare, pairs_of
from quantharm.common.chat import Asking
from quantharm.common.errors import UserError
from quantharm.common.files import read_parquet, sha256_of_text, write_json, write_parquet
from quantharm.common.records.tasks import ComparedTasks, OneTask, OwnAnswers, TaskBasis, TaskComparison, TasksRecord
from quantharm.common.stage import begin_model_stage, cell_parser, run_stage, sentence_for
from quantharm.common.versions import version_of
from quantharm.config.tasks import TaskEntry
from quantharm.models.cell import Cell, open_cell

NOT_COMPARED: TaskComparison = {  # in the baseline's own file
    "baseline_accuracy": None,
    "accuracy_change": None,
    "accuracy_change_ci95": None,
    "recovery": None,
    "recovery_ci95": None,
    "flips_right_to_wrong": None,
    "flips_wrong_to_right": None,
    "flips": None,
    "mcnemar_p": None,
    "smallest_detectable_difference": None,
}
IDENTITY = ["task", "subtask", "item", "prompt_sha256"]


def answer_tasks(
    cell: Cell,
    entries: list[TaskEntry],
    folder: Path | None,
    seed: int,
    asking: Asking,
    answer_tokens: int | None,
) -> tuple[pandas.DataFrame, dict[str, TaskBasis]]:
    """(a row an item, {task: the settings and prompts behind its figures})."""
    from lm_eval.evaluator import evaluate

    from quantharm.harness import task_list
    from quantharm.harness.items import rows_of
    from quantharm.harness.language_model import LoadedModel

    task_list.quiet()
    index = task_list.find_tasks([entry["task"] for entry in entries], folder)
    tables: list[pandas.DataFrame] = []
    basis: dict[str, TaskBasis] = {}
    for entry in entries:
        tasks = task_list.load_task(index, entry, seed)
        asked = LoadedModel(cell.model, cell.tokenizer, asking, answer_tokens)
        try:
            results = evaluate(
                asked,
                {"tasks": tasks},
                limit=entry["limit"],
                bootstrap_iters=0,
                apply_chat_template=asking.chat_template != "never",
                fewshot_as_multiturn=asking.chat_template != "never",
                system_instruction=asking.system_prompt,
            )
        except Exception as error:  # a task's YAML and functions may raise anything
            if isinstance(error, UserError) or sentence_for(error):
                raise
            raise task_list.cannot_be_asked(entry["task"], error) from error
        rows, metric = rows_of(entry["task"], results["samples"], entry["metric"])
        tables.append(rows)
        basis[entry["task"]] = {
            "metric": metric,
            "few_shot": max(task.get_config("num_fewshot") for task in tasks.values()),
            "limit": entry["limit"],
            "subtasks": list(tasks),
            "prompts_sha256": sha256_of_text("".join(rows["prompt_sha256"])),
            "prompts_cut": asked.cut,
            "decoding": asked.decoding,
        }
    return pandas.concat(tables, ignore_index=True), basis


def own_figures(tables: list[pandas.Series]) -> OwnAnswers:
    """Items and accuracy of one task, or of several with equal weight; tables: right or wrong of each item."""
    right, items = [int(table.sum()) for table in tables], [len(table) for table in tables]
    return {
        "items": sum(items),
        "correct": sum(right),
        "accuracy": sum(k / n for k, n in zip(right, items, strict=True)) / len(items),
        "accuracy_ci95": accuracy_interval(right, items),
    }


def pair_up(rows: pandas.DataFrame, reference: pandas.DataFrame, names: tuple[str, str]) -> dict[str, Pairs]:
    """{task: right and wrong in both}; raises UserError where the two were asked different items."""
    if not rows[IDENTITY].equals(reference[IDENTITY]):
        raise UserError(f"{names[0]} and {names[1]} were asked different items; delete both tasks.json and run again")
    parts = rows.groupby("task", sort=False)["correct"]
    return {task: pairs_of(mine, reference.loc[mine.index, "correct"]) for task, mine in parts}


def figures(rows: pandas.DataFrame, tables: dict[str, Pairs] | None) -> ComparedTasks:
    """Figures of each task and of all; tables: of pair_up, None for the baseline itself."""
    right = dict(list(rows.groupby("task", sort=False)["correct"]))
    return {
        "tasks": {
            task: {**own_figures([part]), **(compare([tables[task]]) if tables else NOT_COMPARED)}
            for task, part in right.items()
        },
        "overall": {
            "task_count": len(right),
            **own_figures(list(right.values())),
            **(compare(list(tables.values())) if tables else NOT_COMPARED),
        },
    }


def main() -> None:
    parser = cell_parser(__doc__)
    parser.add_argument("--tasks", type=json.loads, required=True, help="JSON: [{task, few_shot, limit, metric}]")
    parser.add_argument("--folder", type=Path, help="of YAML tasks beside lm-evaluation-harness's own")
    parser.add_argument("--seed", type=int, default=0, help="of the examples that are drawn")
    parser.add_argument("--ask-by-template", action="store_true", help="put items by the tokenizer's chat template")
    parser.add_argument("--template-date", default=Asking.template_date, help="today's date, as a template is told")
    parser.add_argument("--system-prompt", help="said before each item, in the role `system`")
    parser.add_argument("--answer-tokens", type=int, help="longest answer, whatever a task says")
    parser.add_argument("--baseline", type=Path, help="the baseline's tasks.parquet; of the baseline itself none")
    parser.add_argument("--rows", type=Path, required=True, help="tasks.parquet")
    parser.add_argument("--output", type=Path, required=True, help="tasks.json")
    arguments = parser.parse_args()
    timing = begin_model_stage()
    cell = open_cell(arguments.quantization, arguments.device, timing)
    asking = Asking(
        chat_template="required" if arguments.ask_by_template else "never",
        template_date=arguments.template_date,
        system_prompt=arguments.system_prompt if arguments.ask_by_template else None,
    )
    with timing.part("model"):
        rows, basis = answer_tasks(
            cell, arguments.tasks, arguments.folder, arguments.seed, asking, arguments.answer_tokens
        )
    tables = None
    if arguments.baseline:
        tables = pair_up(rows, read_parquet(arguments.baseline), (cell.title, str(arguments.baseline)))
    compared = figures(rows, tables)
    by_task: dict[str, OneTask] = {task: {**values, **basis[task]} for task, values in compared["tasks"].items()}
    record: TasksRecord = {
        **cell.names(),
        "lm_eval": version_of("lm_eval"),
        "seed": arguments.seed,
        "chat_template": arguments.ask_by_template,
        "tasks": by_task,
        "overall": compared["overall"],
        "seconds": timing.seconds["model"],
        "peak_memory_bytes": cell.peak_memory_bytes(),
        "timing": timing.record(),
        "provenance": cell.provenance(),
    }
    write_parquet(arguments.rows, rows)
    write_json(arguments.output, record)
    overall = compared["overall"]
    print(f"{cell.title}: {overall['accuracy']:.1%} right of {overall['items']:,} items")


if __name__ == "__main__":
    run_stage(main)
