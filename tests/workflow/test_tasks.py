"""Tasks of a protocol: jobs of the default run, run again when a task's file changes; none where none are named."""

from workflow_project import ALL, METHODS, TEXT, everything

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
