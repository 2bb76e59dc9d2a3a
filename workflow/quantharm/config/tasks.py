"""The tasks that a model answers: those of its protocol or its own, each with its options."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from quantharm.common.errors import UserError

if TYPE_CHECKING:
    from quantharm.config.entries import Configuration, GivenTask, TaskOptions

OVERALL = "overall"  # the row of all tasks together, so no task's name


class TaskEntry(TypedDict):
    """One task as the config names it, its options filled in."""

    few_shot: int | None  # null: as many as the task states, else none
    limit: int | None  # null: all items
    metric: str | None  # null: the one that harness/items.py prefers
    task: str  # its name


def with_options(task: "str | GivenTask", options: "TaskOptions") -> TaskEntry:
    """A task with the options that it sets for itself, and its protocol's for the others."""
    own: GivenTask = {"task": task} if isinstance(task, str) else task
    return {
        "few_shot": own.get("few_shot", options["few_shot"]),
        "limit": own.get("limit", options["limit"]),
        "metric": own.get("metric", options["metric"]),
        "task": own["task"],
    }


def tasks_of(config: "Configuration", model: str) -> list[TaskEntry]:
    """The tasks in the order of the config; none where neither protocol nor model names any.

    Raises UserError for a task that is named twice, and for a name that would be mistaken.
    """
    entry = config["models"][model]
    protocol = config["protocols"][entry["protocol"]]
    where = f"protocols.{entry['protocol']}.tasks" if entry["tasks"] is None else f"models.{model}.tasks"
    chosen = protocol["tasks"] if entry["tasks"] is None else entry["tasks"]
    tasks = [with_options(task, protocol["task_options"]) for task in chosen]
    names = [task["task"] for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"`{where}` in the config names `{name}` twice; a task has one set of options")
        if not name.isprintable():
            raise UserError(
                f"`{where}` in the config names {name[:80]!r}, which has control characters; rename the task"
            )
        if name == OVERALL:
            raise UserError(f"`{where}` in the config names a task `{name}`, which is the row of all tasks; rename it")
    return tasks


def task_files(folder: str | None) -> list[str]:
    """All files in the user's folder of tasks: YAML, and the data and functions that it names."""
    if folder is None:
        return []
    return sorted(str(path) for path in Path(folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def check_tasks(config: "Configuration") -> None:
    """Raises UserError for a list of tasks, or a folder of them, that the stages could not use."""
    for model, entry in config["models"].items():
        if not tasks_of(config, model):
            continue
        key = f"protocols.{entry['protocol']}.task_options.folder"
        folder = config["protocols"][entry["protocol"]]["task_options"]["folder"]
        if folder is not None and not os.path.isdir(folder):
            raise UserError(
                f"`{key}` in the config is {folder[:200]!r}, which is no folder here; correct the path, or null for "
                "lm-evaluation-harness's own tasks alone"
            )
        for path in task_files(folder):
            if set("{}") & set(path) or not path.isprintable():
                raise UserError(
                    f"{path[:200]!r} is in the folder of `{key}`, and Snakemake takes no file names with braces or "
                    "control characters: rename it"
                )
