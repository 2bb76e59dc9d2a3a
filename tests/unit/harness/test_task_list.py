"""Finding tasks, and one sentence where one is not there or cannot be asked."""

import json

import pytest

from quantharm.common.errors import UserError
from quantharm.harness.task_list import find_tasks, items_of, load_task

ENTRY = {"task": "letters", "few_shot": None, "limit": None, "metric": None}
LETTERS = """
task: letters
dataset_path: json
dataset_kwargs: {data_files: {train: FOLDER/items.jsonl, test: FOLDER/items.jsonl}}
training_split: train
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: ["a", "b"]
doc_to_target: right
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A user's folder with one task of five items."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "letters.yaml").write_text(LETTERS.replace("FOLDER", str(folder)))
    (folder / "items.jsonl").write_text(
        "".join(json.dumps({"question": f"{i}?", "right": i % 2}) + "\n" for i in range(5))
    )
    return folder


def changed(tmp_path, folder, old, new):
    (tmp_path / "letters.yaml").write_text(LETTERS.replace("FOLDER", str(folder)).replace(old, new))
    return find_tasks(["letters"], tmp_path)


def test_a_users_task_is_found_without_reading_the_thousands(folder):
    index = find_tasks(["letters"], folder)
    assert index.all_tasks == ["letters"]
    tasks = load_task(index, ENTRY, 0)
    assert dict(items_of(tasks, None)) == {"letters": 5}
    assert dict(items_of(tasks, 3)) == {"letters": 3}


def test_a_name_that_nobody_has_is_refused_with_what_may_be_meant(folder, tmp_path, monkeypatch):
    (tmp_path / "arc_easy.yaml").write_text("task: arc_easy")
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(tmp_path / "manager.py"))  # thousands take ten seconds
    with pytest.raises(UserError, match=r"no task `arc_esay` in lm-evaluation-harness .* did you mean `arc_easy`\?"):
        find_tasks(["letters", "arc_esay"], folder)


def test_a_task_of_theirs_is_found_by_its_files_name_and_a_group_by_reading_all(folder, tmp_path, monkeypatch):
    theirs = tmp_path / "theirs"
    for place, text in (
        ("easy/simple.yaml", "task: simple\ntag: all_simple"),
        ("other/simple_too.yaml", "task: simple_too\ntag: all_simple"),
        ("other/another.yaml", "task: hard"),
    ):
        (theirs / place).parent.mkdir(parents=True, exist_ok=True)
        (theirs / place).write_text(text)
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(theirs / "manager.py"))
    assert find_tasks(["letters", "simple"], folder).all_subtasks == ["letters", "simple"]
    everything = ["hard", "letters", "simple", "simple_too"]
    assert find_tasks(["letters", "hard"], folder).all_subtasks == everything  # in a file of another name
    assert find_tasks(["all_simple"], folder).all_subtasks == everything
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "both.yaml").write_text("group: both\ntask: [simple, hard]")
    assert {"both", "simple", "hard"} <= set(find_tasks(["both"], mine).all_tasks)


def test_a_file_that_is_no_task_is_named(tmp_path):
    (tmp_path / "broken.yaml").write_text("task: [")
    with pytest.raises(UserError, match=r"broken\.yaml cannot be read"):
        find_tasks(["broken"], tmp_path)


def test_examples_are_those_that_the_config_asks_for(folder, tmp_path):
    index = find_tasks(["letters"], folder)
    assert load_task(index, ENTRY, 0)["letters"].get_config("num_fewshot") == 0
    assert load_task(index, ENTRY | {"few_shot": 2}, 0)["letters"].get_config("num_fewshot") == 2
    own = changed(tmp_path, folder, "test_split: test", "test_split: test\nnum_fewshot: 3")
    assert load_task(own, ENTRY, 0)["letters"].get_config("num_fewshot") == 3
    none = changed(tmp_path, folder, "test_split: test", "test_split: test\nnum_fewshot: 0")
    with pytest.raises(UserError, match="takes no examples"):
        load_task(none, ENTRY | {"few_shot": 2}, 0)


def test_the_seed_decides_which_examples_are_drawn(folder):
    index = find_tasks(["letters"], folder)
    entry = ENTRY | {"few_shot": 2}
    doc = {"question": "x?", "right": 0}
    texts = [load_task(index, entry, seed)["letters"].fewshot_context(doc, 2) for seed in (0, 0, 1, 2, 3)]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


def test_data_that_is_not_here_is_one_sentence(folder, tmp_path):
    index = changed(tmp_path, folder, "dataset_path: json", "dataset_path: owner/nothing")
    with pytest.raises(
        UserError, match=r"the data of task `letters` cannot be loaded \(no network\); on a host without"
    ):
        load_task(index, ENTRY, 0, "no network")
    index = changed(tmp_path, folder, "items.jsonl", "missing.jsonl")
    with pytest.raises(UserError, match=r"cannot be loaded \(.*missing\.jsonl"):
        load_task(index, ENTRY, 0)


def test_what_is_not_right_or_wrong_is_refused(folder, tmp_path):
    index = changed(tmp_path, folder, "multiple_choice", "loglikelihood_rolling")
    with pytest.raises(UserError, match="scores whole texts"):
        load_task(index, ENTRY, 0)
