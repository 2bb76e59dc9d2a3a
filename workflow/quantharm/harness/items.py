"""From lm-evaluation-harness's samples to a row an item: which metric says right or wrong, prompt, target, answer."""

import json
from typing import Any, TypedDict

import numpy
import pandas

from quantharm.common.errors import UserError
from quantharm.common.files import sha256_of_text

PREFERRED = ("acc", "exact_match")  # of a task with several metrics; else the first that is right or wrong
Sample = dict[str, Any]  # one of lm_eval.evaluator.evaluate's: what was asked of an item, and each metric's value
NORMALISED = {"acc_norm": len, "acc_bytes": lambda text: len(text.encode("utf-8"))}


def judging_metrics(samples: list[Sample]) -> list[tuple[str, str]]:
    """[(metric, filter)] that say of every item that it is right (1) or wrong (0), in the task's order."""
    metrics: list[tuple[str, str]] = []
    for key in dict.fromkeys((metric, sample["filter"]) for sample in samples for metric in sample["metrics"]):
        values = [sample[key[0]] for sample in samples if sample["filter"] == key[1]]
        if all(isinstance(value, (bool, int, float, numpy.number)) and value in (0, 1) for value in values):
            metrics.append(key)
    return metrics


def choose_metric(task: str, samples: list[Sample], wanted: str | None) -> tuple[str, str]:
    """(metric, filter) by which a task's answers are judged; wanted: `metric` or `metric,filter`, as in its results."""
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
        f"task `{task}` has no metric `{wanted}` that says right or wrong of each answer; it has "
        f"{', '.join(','.join(key) for key in judging)}"
    )


def text_of_target(sample: Sample, choices: list[str]) -> str:
    """The right answer: the text of the right ending, or of several; of a generated answer the target as it is."""
    targets = sample["target"] if isinstance(sample["target"], list) else [sample["target"]]
    is_index = bool(choices) and all(isinstance(t, int) and 0 <= t < len(choices) for t in targets)
    return " | ".join(choices[t] if is_index else str(t) for t in targets)


class ItemRow(TypedDict):
    """A row of tasks.parquet."""

    task: str
    subtask: str
    item: int
    prompt_sha256: str  # of all that was asked about the item, endings and settings of the answer included
    target: str
    answer: str
    log_likelihoods: list[float] | None  # nats, one an ending; null for generated answers
    correct: bool


def item_row(task: str, subtask: str, sample: Sample, metric: str) -> ItemRow:
    """The answer to an item, judged by a metric."""
    log_likelihoods = None
    choices: list[str] = []
    if isinstance(sample["filtered_resps"][0], (tuple, list)) and len(sample["filtered_resps"][0]) == 2:
        log_likelihoods = [float(value) for value, _ in sample["filtered_resps"]]
        choices = [arguments[1] for arguments in sample["arguments"]]
        if len(set(choices)) < len(choices):  # the prompts differ, not the endings
            choices = [str(i) for i in range(len(choices))]
        length = NORMALISED.get(metric, lambda text: 1)
        scores = [value / max(1, length(c.strip())) for value, c in zip(log_likelihoods, choices, strict=True)]
        answer = choices[int(numpy.argmax(scores))]
        if len(choices) == 1 and not sample["filtered_resps"][0][1]:
            answer = ""  # another token than the target's is the most likely one
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
    """(a row an item, `metric,filter`); samples: those of a task, or of each task of a group."""
    rows, used = [], []
    for subtask, all_samples in samples.items():
        metric, filter_name = choose_metric(task, all_samples, wanted)
        chosen = [sample for sample in all_samples if sample["filter"] == filter_name]
        rows += [item_row(task, subtask, sample, metric) for sample in sorted(chosen, key=lambda s: s["doc_id"])]
        used.append(f"{metric},{filter_name}")
    return pandas.DataFrame(rows), " and ".join(dict.fromkeys(used))
