"""Tasks of a protocol: jobs of the default run, run again when a task's file changes; none where none are named."""

import json

from stand_in_hub import stand_in_hub
from workflow_project import ALL, METHODS, TEXT, evaluation_python, everything

TASKS = {"reference: fetch the tasks' data"} | {f"reference × {method}: tasks" for method in METHODS}
FEW = [{"task": "right-ending", "limit": 6}]


def test_tasks_that_a_protocol_names_are_part_of_the_default_run(small):
    small.edit("protocols/tiny/tasks", ["right-ending"])
    assert small.jobs() == everything() | ALL | {TEXT} | TASKS


def test_a_models_own_empty_list_leaves_them_out(small):
    small.edit("protocols/tiny/tasks", ["right-ending"])
    small.edit("models/reference/tasks", [])
    assert small.jobs() == everything() | ALL | {TEXT}


def test_answers_reach_the_summary_and_follow_their_files(finished):
    finished.edit("evaluate/methods", ["baseline", "nf4"])
    finished.edit("protocols/tiny/tasks", FEW)
    finished.run("results/reference/summary.json")
    cells = {cell["method"]: cell for cell in finished.read("summary.json")["cells"]}
    figures = cells["nf4"]["tasks"]["right-ending"]
    assert (figures["items"], figures["limit"], figures["metric"]) == (6, 6, "acc_norm,none")
    assert figures["mcnemar_p_holm"] == figures["mcnemar_p"]  # the only comparison
    assert cells["baseline"]["tasks"]["right-ending"]["recovery"] is None
    assert "task/right-ending/accuracy" in finished.path("summary.csv").read_text(encoding="utf-8").splitlines()[0]
    items = finished / "data/tasks/right-ending.jsonl"
    items.write_text(items.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    again = finished.jobs("results/reference/nf4/tasks.json")
    assert again == {"reference: fetch the tasks' data", "reference × baseline: tasks", "reference × nf4: tasks"}


def test_tasks_of_the_harness_by_name_and_a_budget_name_the_method_to_ship(finished, stages, tmp_path, monkeypatch):
    """Only the fetch sees a hub, a stand-in with invented items; without one, and nothing in the cache, it says so."""
    finished.edit("evaluate/methods", ["baseline", "nf4"])
    finished.edit("protocols/tiny/tasks", ["arc_easy", "gsm8k"])
    finished.edit("protocols/tiny/task_options", {"answer_tokens": 4})
    finished.edit("budget", {"kl_nats": 5, "recovery": 0.01, "undecided": "pass"})
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    fetch = "results/reference/task_data.json"
    alone = finished.snakemake(fetch)
    assert alone.code != 0
    said = (finished / "results/logs/fetch_tasks/reference.log").read_text(encoding="utf-8").splitlines()
    assert said[-1].startswith("error: the data of task `arc_easy` cannot be loaded (HF_HUB_OFFLINE is set); on a host")

    finished.use_python(evaluation_python())  # the forks began without network
    with stand_in_hub() as hub, monkeypatch.context() as online:
        online.setenv("HF_ENDPOINT", hub.url)
        online.delenv("HF_HUB_OFFLINE", raising=False)
        finished.run(fetch)
    finished.use_python(stages.shell_words)
    finished.run("gate")
    cell = next(cell for cell in finished.read("summary.json")["cells"] if cell["method"] == "nf4")
    assert {name: (task["items"], task["few_shot"]) for name, task in cell["tasks"].items()} == {
        "arc_easy": (6, 0),
        "gsm8k": (3, 5),
    }
    budget = json.loads((finished / "results/gate/budget.json").read_text(encoding="utf-8"))
    assert budget["advice"][0]["ship"] == "nf4"
    recovery = next(line for line in budget["lines"] if line["limit"] == "recovery")
    assert recovery["verdict"] in ("pass", "undecided")
