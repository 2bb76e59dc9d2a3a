"""From lm-evaluation-harness's samples to a row an item: prompt, target, answer, and whether it is right."""

import json
from typing import Any, TypedDict

import numpy
import pandas

from quantharm.common.errors import UserError
from quantharm.common.files import sha256_of_text

PREFERRED = ("acc", "exact_match")  # of a task with several metrics; else the first that is right or wrong
# Of lm_eval.evaluator.evaluate: an item's question and answer. Each metric's value is under the metric's name, so the
# keys differ from task to task.
Sample = dict[str, Any]
NORMALISED = {"acc_norm": len, "acc_bytes": lambda text: len(text.encode("utf-8"))}  # what a metric divides by


def judging_metrics(samples: list[Sample]) -> list[tuple[str, str]]:
    """[(metric, filter)] whose value is 1 (right) or 0 (wrong) for every item, in the task's order."""
    metrics: list[tuple[str, str]] = []
    for key in dict.fromkeys((metric, sample["filter"]) for sample in samples for metric in sample["metrics"]):
        values = [sample[key[0]] for sample in samples if sample["filter"] == key[1]]
        if all(isinstance(value, (bool, int, float, numpy.number)) and value in (0, 1) for value in values):
            metrics.append(key)
    return metrics


def choose_metric(task: str, samples: list[Sample], wanted: str | None) -> tuple[str, str]:
    """(metric, filter) by which a task's answers are judged; wanted: `metric` or `metric,filter`, None for any.

    Raises UserError where the task has none that says right or wrong, or not the wanted one.
    """
    judging = judging_metrics(samples)
    all_metrics = dict.fromkeys(f"{metric},{sample['filter']}" for sample in samples for metric in sample["metrics"])
    if not judging:
        raise UserError(
            f"task `{task}` has no metric that says right or wrong of each answer (it has {', '.join(all_metrics)}); "
            "take it out"
        )
    if wanted is None:
        return next((key for name in PREFERRED for key in judging if key[0] == name), judging[0])
    for key in judging:
        if wanted in (key[0], ",".join(key)):
            return key
    raise UserError(
        f"task `{task}` has no metric `{wanted}` that says right or wrong of each answer; name one of "
        f"{', '.join(','.join(key) for key in judging)}"
    )


def text_of_target(sample: Sample, choices: list[str]) -> str:
    """The text of the right answer, or of several; of a task with endings (`choices`), that of the right ending."""
    targets = sample["target"] if isinstance(sample["target"], list) else [sample["target"]]
    are_indices = bool(choices) and all(isinstance(target, int) and 0 <= target < len(choices) for target in targets)
    return " | ".join(choices[target] if are_indices else str(target) for target in targets)


class ItemRow(TypedDict):
    """A row of tasks.parquet."""

    task: str
    subtask: str
    item: int
    prompt_sha256: str  # of everything asked about the item, with endings and settings of the answer
    target: str
    answer: str
    log_likelihoods: list[float] | None  # nats, one an ending; null for generated answers
    correct: bool


def item_row(task: str, subtask: str, sample: Sample, metric: str) -> ItemRow:
    """The row of an item, judged by a metric."""
    log_likelihoods = None
    choices: list[str] = []
    if isinstance(sample["filtered_resps"][0], (tuple, list)) and len(sample["filtered_resps"][0]) == 2:
        log_likelihoods = [float(value) for value, _ in sample["filtered_resps"]]
        choices = [arguments[1] for arguments in sample["arguments"]]
        if len(set(choices)) < len(choices):  # the prompts differ, not the endings
            choices = [str(i) for i in range(len(choices))]
        length = NORMALISED.get(metric, lambda text: 1)
        scores = [value / max(1, length(text.strip())) for value, text in zip(log_likelihoods, choices, strict=True)]
        answer = choices[int(numpy.argmax(scores))]
        if len(choices) == 1 and not sample["filtered_resps"][0][1]:
            answer = ""  # the model's most probable tokens are not the target's
    else:
        first = sample["filtered_resps"][0]
        answer = str(first[0] if isinstance(first, list) and first else first)
    return {
        "task": task,
        "subtask": subtask,
        "item": int(sample["doc_id"]),
        "prompt_sha256": sha256_of_text(json.dumps(sample["arguments"], default=str, sort_keys=True)),
        "target": text_of_target(sample, choices),
        "answer": answer,
        "log_likelihoods": log_likelihoods,
        "correct": bool(sample[metric]),
    }


def rows_of(task: str, samples: dict[str, list[Sample]], wanted: str | None) -> tuple[pandas.DataFrame, str]:
    """(a row an item, `metric,filter`); samples: {subtask: samples}, of a task itself or of each task of a group."""
    rows, judged_by = [], []
    for subtask, all_samples in samples.items():
        metric, filter_name = choose_metric(task, all_samples, wanted)
        chosen = [sample for sample in all_samples if sample["filter"] == filter_name]
        rows += [item_row(task, subtask, sample, metric) for sample in sorted(chosen, key=lambda s: s["doc_id"])]
        judged_by.append(f"{metric},{filter_name}")
    return pandas.DataFrame(rows), " and ".join(dict.fromkeys(judged_by))
