"""Tasks of a tiny model from the command lines: fetch_tasks, the baseline's answers, a method's beside them."""

import ast
import json

import pandas
import pytest
from record_types import faults
from scipy.stats import binomtest
from stage_chain import Chain

from quantharm.common.accuracy import Pairs, compare
from quantharm.common.errors import UserError
from quantharm.common.files import read_parquet, sha256_of_text
from quantharm.common.records.tasks import TaskDataRecord, TasksRecord
from quantharm.config.dependencies import PACKAGE
from quantharm.tasks import figures, pair_up

CHOICE = """
task: letters
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/items.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "Which letter is number {{number}}?"
doc_to_choice: [" a", " b", " c"]
doc_to_target: right
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
ANSWER = """
task: words
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/items.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "Number {{number}}:"
doc_to_target: "{{right}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
ENTRIES = [
    {"task": task, "few_shot": None, "limit": limit, "metric": None}
    for task, limit in (("letters", None), ("words", 4))
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    for name, text in (("letters", CHOICE), ("words", ANSWER)):
        (folder / f"{name}.yaml").write_text(text.replace("FOLDER", str(folder)))
    items = [{"number": i, "right": i % 3} for i in range(12)]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return folder


@pytest.fixture(scope="module")
def answered(tiny, save_checkpoint, tmp_path_factory, folder):
    """The chain after both tasks were answered by the baseline and by NF4."""
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("chain")
        chain = Chain(place, save_checkpoint(tiny("llama"), place / "model"), patch)
        for method in ("baseline", "nf4"):
            chain.call("quantize", method)
            chain.run("tasks", words_of(chain, method, folder))
        chain.run("fetch_tasks", words_of_fetch(chain, folder))
        yield chain


def words_of(chain, method, folder, entries=ENTRIES):
    cell = chain / method
    words = ["--quantization", cell / "quantization.json", "--tasks", json.dumps(entries), "--folder", folder]
    words += ["--rows", cell / "tasks.parquet", "--output", cell / "tasks.json", "--device", "cpu"]
    words += [] if method == "baseline" else ["--baseline", chain / "baseline/tasks.parquet"]
    return [str(word) for word in words]


def words_of_fetch(chain, folder, entries=ENTRIES):
    return ["--tasks", json.dumps(entries), "--folder", str(folder), "--output", str(chain / "task_data.json")]


def test_every_item_has_a_row_and_every_task_its_figures(answered):
    rows = read_parquet(answered / "nf4/tasks.parquet")
    record = answered.read("nf4/tasks.json")
    assert rows.groupby("task", sort=False).size().to_dict() == {"letters": 12, "words": 4}
    assert rows["log_likelihoods"].map(lambda v: v is None or len(v) == 3).all()
    letters, words = record["tasks"]["letters"], record["tasks"]["words"]
    assert (letters["metric"], words["metric"], words["limit"]) == ("acc,none", "exact_match,none", 4)
    assert letters["correct"] == rows[rows["task"] == "letters"]["correct"].sum()
    assert letters["prompts_sha256"] == sha256_of_text("".join(rows["prompt_sha256"][:12]))
    right = [r["answer"] == r["target"] for _, r in rows.iterrows()]
    assert right == rows["correct"].tolist()
    assert record["overall"]["accuracy"] == pytest.approx((letters["accuracy"] + words["accuracy"]) / 2)


def test_a_methods_answers_are_beside_the_baselines(answered):
    mine, reference = (read_parquet(answered / f"{m}/tasks.parquet") for m in ("nf4", "baseline"))
    letters = answered.read("nf4/tasks.json")["tasks"]["letters"]
    before, now = (table[table["task"] == "letters"]["correct"] for table in (reference, mine))
    lost, gained = int((before & ~now).sum()), int((now & ~before).sum())
    assert (letters["flips_right_to_wrong"], letters["flips_wrong_to_right"]) == (lost, gained)
    assert letters["mcnemar_p"] == (binomtest(lost, lost + gained).pvalue if lost + gained else 1.0)
    assert mine["log_likelihoods"][0].tolist() != reference["log_likelihoods"][0].tolist()
    own = answered.read("baseline/tasks.json")["tasks"]["letters"]
    assert own.keys() == letters.keys()
    assert [own[key] for key in compare([Pairs(1, 1, 1, 1)])] == [None] * 10


def test_the_records_are_of_their_types(answered):
    for method in ("baseline", "nf4"):
        assert faults(answered.read(f"{method}/tasks.json"), TasksRecord) == []
    assert faults(answered.read("task_data.json"), TaskDataRecord) == []


def test_what_was_fetched_is_recorded(answered):
    assert answered.read("task_data.json")["tasks"] == {
        "letters": [{"subtask": "letters", "dataset": "json", "configuration": None, "items": 12}],
        "words": [{"subtask": "words", "dataset": "json", "configuration": None, "items": 4}],
    }


def test_other_items_than_the_baselines_are_not_compared(answered):
    rows = read_parquet(answered / "baseline/tasks.parquet")
    changed = rows.copy()
    changed.loc[3, "prompt_sha256"] = "0" * 64
    with pytest.raises(UserError, match="m × a and b were asked different items"):
        pair_up(changed, rows, ("m × a", "b"))
    with pytest.raises(UserError, match="different items"):
        pair_up(rows[:-1], rows, ("m × a", "b"))


def test_figures_over_all_tasks_weigh_them_alike():
    def rows(right):
        return pandas.DataFrame(
            {"task": ["a"] * 4 + ["b"] * 2, "subtask": "s", "item": range(6), "prompt_sha256": "", "correct": right}
        )

    mine, reference = rows([True, True, True, False, False, False]), rows([True, True, True, True, True, False])
    found = figures(mine, pair_up(mine, reference, ("x", "y")))
    assert found["overall"]["accuracy"] == pytest.approx((3 / 4 + 0) / 2)
    assert found["overall"]["recovery"] == pytest.approx((3 / 4 + 0) / (1 + 1 / 2))
    assert found["overall"]["flips_right_to_wrong"] == 2
    assert found["tasks"]["a"]["recovery"] == pytest.approx(3 / 4)


def test_a_task_that_cannot_be_asked_leaves_nothing(answered, folder, tmp_path):
    (tmp_path / "odd.yaml").write_text(
        CHOICE.replace("FOLDER", str(folder)).replace("letters", "odd").replace("number}}", "nothing.at.all}}")
    )
    before = answered.files()
    words = words_of(answered, "baseline", tmp_path, [ENTRIES[0] | {"task": "odd"}])
    with pytest.raises(SystemExit, match="error: task `odd` cannot be asked"):
        answered.run("tasks", words)
    assert answered.files() == before


def test_importing_a_stage_imports_no_lm_evaluation_harness():
    """At a module's top nobody but the room `harness` names it, and nobody but the room itself names the room."""
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name != "harness":
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                names = [a.name for a in getattr(node, "names", [])] + [getattr(node, "module", None) or ""]
                assert not any(name.startswith(("lm_eval", "quantharm.harness")) for name in names), path
