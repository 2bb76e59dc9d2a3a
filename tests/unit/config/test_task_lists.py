"""Tasks of the config: a protocol's or a model's, with their options."""

import pytest

from quantharm.common.errors import UserError
from quantharm.config.tasks import check_tasks, task_files, tasks_of

OPTIONS = {"few_shot": None, "limit": 100, "metric": None, "folder": None}


def config_of(tasks, own=None, **options):
    return {
        "models": {"m": {"protocol": "p", "tasks": own}},
        "protocols": {"p": {"tasks": tasks, "task_options": OPTIONS | options}},
    }


def test_a_task_has_the_protocols_options_but_for_its_own():
    config = config_of(["arc_easy", {"task": "gsm8k", "few_shot": 5, "metric": "exact_match,flexible-extract"}])
    assert tasks_of(config, "m") == [
        {"task": "arc_easy", "few_shot": None, "limit": 100, "metric": None},
        {"task": "gsm8k", "few_shot": 5, "limit": 100, "metric": "exact_match,flexible-extract"},
    ]


def test_a_models_own_tasks_stand_in_place_of_the_protocols():
    assert [task["task"] for task in tasks_of(config_of(["arc_easy"], ["gsm8k"]), "m")] == ["gsm8k"]
    assert tasks_of(config_of(["arc_easy"], []), "m") == []


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (["a", {"task": "a", "few_shot": 1}], "`protocols.p.tasks` in the config names `a` twice"),
        (["overall"], "rename"),
        (["a\u202eb"], "control characters"),
    ],
)
def test_tasks_that_cannot_be_meant_are_refused(tasks, message):
    with pytest.raises(UserError, match=message):
        check_tasks(config_of(tasks))


def test_the_folder_must_be_there_where_tasks_are_named(tmp_path):
    check_tasks(config_of([], folder=str(tmp_path / "missing")))
    with pytest.raises(UserError, match=r"`protocols.p.task_options.folder` in the config is .* no folder here"):
        check_tasks(config_of(["a"], folder=str(tmp_path / "missing")))


def test_files_of_the_folder_are_noticed_and_names_that_snakemake_cannot_take_refused(tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "a.yaml").touch()
    assert task_files(str(tmp_path)) == [str(tmp_path / "inside" / "a.yaml")]
    check_tasks(config_of(["a"], folder=str(tmp_path)))
    (tmp_path / "{b}.yaml").touch()
    with pytest.raises(UserError, match="braces"):
        check_tasks(config_of(["a"], folder=str(tmp_path)))
