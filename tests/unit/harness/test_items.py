"""From samples to rows: which metric counts, the target, the answer."""

import pytest

from quantharm.common.errors import UserError
from quantharm.harness.items import choose_metric, item_row, judging_metrics, rows_of


def chosen(values, target=1, **metrics):
    """A multiple-choice sample of three endings with these log-likelihoods."""
    return {
        "doc_id": 7,
        "target": target,
        "arguments": [("Q", " a"), ("Q", " bb"), ("Q", " cccccc")],
        "filtered_resps": [(value, False) for value in values],
        "filter": "none",
        "metrics": list(metrics),
        **metrics,
    }


def generated(answer, filter_name, **metrics):
    return {
        "doc_id": 0,
        "target": "42",
        "arguments": [("Q", {"until": ["\n"]})],
        "filtered_resps": [answer],
        "filter": filter_name,
        "metrics": list(metrics),
        **metrics,
    }


def test_only_metrics_that_say_right_or_wrong_of_every_item_judge():
    samples = [
        chosen([0, -1, -2], acc=0.0, f1=(1, 0), likelihood=0.3),
        chosen([0, -1, -2], acc=1.0, f1=(1, 0), likelihood=1),
    ]
    assert judging_metrics(samples) == [("acc", "none")]


def test_acc_is_preferred_and_another_can_be_named():
    samples = [chosen([0, -1, -2], acc_norm=1.0, acc=0.0)]
    assert choose_metric("t", samples, None) == ("acc", "none")
    assert choose_metric("t", samples, "acc_norm") == ("acc_norm", "none")
    with pytest.raises(UserError, match=r"task `t` has no metric `f1` .* name one of acc_norm,none, acc,none"):
        choose_metric("t", samples, "f1")


def test_of_several_filters_the_first_counts_unless_another_is_named():
    samples = [generated("[invalid]", "strict", exact_match=0.0), generated("42", "flexible", exact_match=1.0)]
    assert choose_metric("t", samples, None) == ("exact_match", "strict")
    rows, metric = rows_of("t", {"t": samples}, "exact_match,flexible")
    assert metric == "exact_match,flexible"
    assert rows[["answer", "target", "correct"]].values.tolist() == [["42", "42", True]]


def test_a_task_without_such_a_metric_is_refused():
    with pytest.raises(UserError, match=r"no metric that says right or wrong of each answer \(it has bleu,none\)"):
        choose_metric("t", [chosen([0, -1, -2], bleu=0.4)], None)


@pytest.mark.parametrize(
    ("metric", "values", "answer"),
    [("acc", [-1, -1.5, -3], " a"), ("acc_norm", [-1, -1.5, -3], " cccccc"), ("acc_bytes", [-1, -1.9, -6.6], " bb")],
)
def test_the_answer_is_the_one_that_the_metric_takes(metric, values, answer):
    row = item_row("t", "t", chosen(values, **{metric: 0.0}), metric)
    assert (row["answer"], row["target"], row["correct"], row["item"]) == (answer, " bb", False, 7)
    assert row["log_likelihoods"] == values


def test_endings_that_are_alike_are_told_by_their_number():
    sample = chosen([-1, -2, -3], target=0, acc=1.0) | {"arguments": [("A", " x"), ("B", " x"), ("C", " x")]}
    row = item_row("t", "t", sample, "acc")
    assert (row["answer"], row["target"]) == ("0", "0")


def test_of_one_ending_the_answer_is_whether_it_is_the_greedy_one():
    sample = chosen([-1], target=" word", acc=0.0) | {"arguments": [("A", " word")]}
    assert item_row("t", "t", sample, "acc")["answer"] == ""


def test_the_hash_is_of_everything_that_was_asked():
    sample = chosen([-1, -2, -3], acc=1.0)
    other = sample | {"arguments": [*sample["arguments"][:2], ("Q", " d")]}
    assert item_row("t", "t", sample, "acc")["prompt_sha256"] != item_row("t", "t", other, "acc")["prompt_sha256"]


def test_a_group_is_all_items_of_its_tasks():
    rows, metric = rows_of("group", {"a": [chosen([-1, -2, -3], acc=0.0)], "b": [chosen([-2, -1, -3], acc=1.0)]}, None)
    assert rows["task"].tolist() == ["group", "group"]
    assert rows["subtask"].tolist() == ["a", "b"]
    assert metric == "acc,none"
