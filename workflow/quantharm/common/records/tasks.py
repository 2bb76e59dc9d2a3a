"""tasks.json and task_data.json: a cell's answers to tasks of lm-evaluation-harness, beside the baseline's."""

from typing import NotRequired, TypedDict

from quantharm.common.records.parts import CellNames, Finished, Interval, Sealed


class TaskComparison(TypedDict):
    """Over the same items as the baseline; all null in the baseline's own file."""

    baseline_accuracy: float | None
    accuracy_change: float | None  # method - baseline, as a share
    accuracy_change_ci95: Interval | None
    recovery: float | None  # method ÷ baseline; null also where the baseline has nothing right
    recovery_ci95: Interval | None  # null also where the baseline's accuracy cannot be told from zero
    flips_right_to_wrong: int | None
    flips_wrong_to_right: int | None
    flips: int | None
    mcnemar_p: float | None  # exact, two-sided, of this comparison alone
    smallest_detectable_difference: float | None  # share; null also where so few items show nothing
    mcnemar_p_holm: NotRequired[float]  # in the summary: corrected for the number of comparisons
    smallest_detectable_difference_corrected: NotRequired[float | None]


class OwnAnswers(TypedDict):
    items: int
    correct: int
    accuracy: float  # share of the items; over all tasks the mean of theirs
    accuracy_ci95: Interval


class TaskFigures(TaskComparison, OwnAnswers):
    pass


class TaskBasis(TypedDict):
    """The settings and prompts that a task's figures rest on."""

    metric: str  # `metric,filter` by which an answer is right or wrong
    few_shot: int  # examples in front of each item
    limit: int | None  # items of each subtask
    subtasks: list[str]
    prompts_sha256: str  # of everything that was asked
    prompts_cut: int  # prompts whose beginning did not fit the context
    decoding: str | None  # captured or eager; null where nothing was generated


class OneTask(TaskFigures, TaskBasis):
    pass


class AllTasks(TaskFigures):
    task_count: int


class ComparedTasks(TypedDict):
    """A cell's answers beside the baseline's."""

    tasks: dict[str, TaskFigures]  # by their names in the config
    overall: AllTasks


class AnsweredTasks(TypedDict):
    tasks: dict[str, OneTask]  # by their names in the config
    overall: AllTasks


class TasksRecord(CellNames, AnsweredTasks, Finished):
    lm_eval: str | None  # its version
    seed: int  # of the examples that were drawn
    chat_template: bool
    seconds: float
    peak_memory_bytes: int | None  # null where the model is behind an address


class TaskData(TypedDict):
    """The data set of a task's items."""

    subtask: str
    dataset: str
    configuration: str | None
    items: int


class TaskDataRecord(Sealed):
    lm_eval: str | None
    tasks: dict[str, list[TaskData]]
