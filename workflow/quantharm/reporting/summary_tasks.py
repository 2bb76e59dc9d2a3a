"""The tasks of the summary's rows: figures of all cells together, since p-values are corrected for their number."""

from pathlib import Path

from quantharm.common.accuracy import corrected
from quantharm.common.constants import BASELINE
from quantharm.common.files import read_json
from quantharm.common.records.summary import SummaryTasks
from quantharm.common.records.tasks import TasksRecord

NO_TASKS = SummaryTasks(tasks=None, tasks_overall=None)


def task_figures(cells: list[Path]) -> dict[str, SummaryTasks]:
    """{method: {tasks: {task: figures}, tasks_overall: figures}}, with p-values corrected for methods × tasks.

    The figures over all tasks are a family of their own, of as many comparisons as methods.
    """
    records: dict[str, TasksRecord] = {cell.name: read_json(cell / "tasks.json") for cell in cells}
    others = {method: record for method, record in records.items() if method != BASELINE}
    single = corrected(
        {(m, task): figures for m, record in others.items() for task, figures in record["tasks"].items()}
    )
    overall = corrected({m: record["overall"] for m, record in others.items()})
    return {
        method: SummaryTasks(
            tasks={task: single.get((method, task), figures) for task, figures in record["tasks"].items()},
            tasks_overall=overall.get(method, record["overall"]),
        )
        for method, record in records.items()
    }
