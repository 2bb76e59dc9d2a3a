"""Tasks by name, lm-evaluation-harness's own and those of the user's folder of YAML, with the config's options."""

import difflib
import logging
from collections.abc import Iterator
from pathlib import Path

import datasets
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager, manager
from lm_eval.tasks._yaml_loader import load_yaml

from quantharm.common.errors import UserError, first_line
from quantharm.common.stage import sentence_for
from quantharm.common.versions import version_of
from quantharm.config.tasks import TaskEntry

NOT_LOADED = (OSError, ValueError, RuntimeError, ImportError, datasets.exceptions.DatasetsError)


def quiet() -> None:
    """Silences the libraries' notices (on defaults that a task's YAML sets, say), which would bury the log."""
    for name in ("lm_eval", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    datasets.disable_progress_bars()


def read_folder(folder: Path | None) -> None:
    """Raises UserError for a YAML file of the folder that lm-evaluation-harness would skip without a word."""
    for path in sorted(Path(folder).rglob("*.yaml")) if folder else []:
        try:
            load_yaml(path, resolve_func=False)
        except Exception as error:  # whatever its reader raises
            raise UserError(f"the task {path} cannot be read: {first_line(error)}; correct it") from None


def folders_of(names: list[str]) -> list[Path]:
    """The folders of lm-evaluation-harness with a file of the name of one of these tasks, as most tasks have."""
    files = {f"{name}.yaml" for name in names}
    return sorted({path.parent for path in Path(manager.__file__).parent.rglob("*.yaml") if path.name in files})


def find_tasks(names: list[str], folder: Path | None) -> TaskManager:
    """An index in which every name exists; folder: the user's. Raises UserError for a name that does not exist.

    Reading all of lm-evaluation-harness's thousands of tasks takes ten seconds, so it is done only for names that need
    it: groups and tags, whose tasks may lie anywhere, and tasks in files of other names.
    """
    read_folder(folder)
    users = [folder] if folder else []
    index = TaskManager(include_path=users, include_defaults=False)
    elsewhere = [name for name in names if name not in index.all_tasks]
    if elsewhere:
        index = TaskManager(include_path=[*folders_of(elsewhere), *users], include_defaults=False)
    if any(name not in index.all_subtasks for name in names):
        index = TaskManager(include_path=users)
    for name in names:
        if name not in index.all_tasks:
            close = difflib.get_close_matches(name, index.all_tasks, 1)
            hint = f"did you mean `{close[0]}`?" if close else "`lm-eval ls tasks` lists all"
            nor = f" nor in {folder}" if folder else ""
            raise UserError(f"there is no task `{name}` in lm-evaluation-harness {version_of('lm_eval')}{nor}; {hint}")
    return index


def load_task(index: TaskManager, entry: TaskEntry, seed: int, unreachable: str = "") -> dict[str, Task]:
    """{name: task} of a task, or of each task of a group or tag, with their data.

    seed: of the examples that are drawn; unreachable: why the hub cannot be reached, where that is known. Raises
    UserError where the data cannot be had, or the task cannot be asked with these options.
    """
    name = entry["task"]
    try:
        tasks = index.load(name)["tasks"]
    except Exception as error:  # a task's YAML and functions may raise anything
        if sentence_for(error):  # the disk is full
            raise
        if not isinstance(error, NOT_LOADED):
            raise cannot_be_asked(name, error) from error
        reason = unreachable or first_line(error)
        raise UserError(
            f"the data of task `{name}` cannot be loaded ({reason}); on a host without network, run the stage "
            "`fetch_tasks` once where there is one and copy the cache of data sets"
        ) from None
    for task in tasks.values():
        refuse_unanswerable(name, task)
        task.set_fewshot_seed(seed)
        stated = task.get_config("num_fewshot")
        if stated == 0 and entry["few_shot"]:
            raise UserError(
                f"task `{name}` takes no examples (its YAML says num_fewshot: 0) but `few_shot: {entry['few_shot']}` "
                "is asked for; leave it out for this task"
            )
        task.set_config("num_fewshot", entry["few_shot"] if entry["few_shot"] is not None else stated or 0)
    return tasks


def cannot_be_asked(name: str, error: Exception) -> UserError:
    """The message for a task whose YAML or functions fail."""
    return UserError(f"task `{name}` cannot be asked: {first_line(error)} ({type(error).__name__}); correct it")


def refuse_unanswerable(name: str, task: Task) -> None:
    """Raises UserError for a task that is not judged by right and wrong answers of a language model."""
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        raise UserError(f"task `{name}` scores whole texts; name the text under `texts:`, stage `perplexity` scores it")
    if getattr(task, "UNSAFE_CODE", False):
        raise UserError(f"task `{name}` runs code that the model writes, which could do anything here; take it out")
    if getattr(task, "MULTIMODAL", False):
        raise UserError(f"task `{name}` shows pictures or sounds, which the models here are not given; take it out")


def items_of(tasks: dict[str, Task], limit: int | None) -> Iterator[tuple[str, int]]:
    """(name, number of items) of each task, at most `limit`."""
    for name, task in tasks.items():
        items = len(task.eval_docs)
        yield name, items if limit is None else min(limit, items)
