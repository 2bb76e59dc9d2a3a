"""Failed jobs: the others go on, and summary and report come with what was finished and name what was not."""

import csv
import json
import os

import pytest
from workflow_project import ALL, ENDS, FAIL, PYTHON, Project, job

OTHER = {"source": "data/reference-model", "protocol": "tiny"}
MADE_TO_FAIL = """\
quantharm.fetch --model other
quantharm.quantize --source results/reference/source.json --method nf4
quantharm.integrity --cell results/reference/int8
"""
REPORTS = ("report.html", "EVALUATION_SUMMARY.md")


def left_out(project: Project) -> dict:
    return {entry["method"]: entry for entry in project.read("summary.json")["left_out"]}


def methods(project: Project) -> list[str]:
    return [row["method"] for row in project.read("summary.json")["cells"]]


def texts(folder) -> list[str]:
    return [(folder / name).read_text(encoding="utf-8") for name in REPORTS]


@pytest.fixture(scope="module")
def failed(cheap, tmp_path_factory):
    """A run in which a model fails at its first stage, a method at its first, and another at its integrity alone."""
    project = cheap.copy(tmp_path_factory.mktemp("failed") / "project")
    project.edit("models/other", OTHER)
    project.edit("evaluate/models", ["other", "reference"])
    project.path("nf4/quantization.json").unlink()
    project.path("int8/integrity.json").unlink()
    (project / FAIL).write_text(MADE_TO_FAIL, encoding="utf-8")
    return project, project.snakemake("--quiet", "host", "reason", cores=1)


def test_the_run_says_what_is_missing_and_that_it_failed(failed):
    run = failed[1]
    assert run.code != 0
    assert (
        "reference × nf4: stage quantize failed: made to fail (results/logs/quantize/reference/nf4.log)" in run.output
    )
    assert "other × awq: it has no baseline" not in run.output  # each says what failed, which is the fetch
    assert "other × awq: stage fetch failed: made to fail (results/logs/fetch/other.log)" in run.output
    assert "Traceback" not in run.output


def test_the_summary_has_the_finished_cells_and_names_the_others(failed):
    project = failed[0]
    assert methods(project) == ["baseline", "int8", "awq"]
    entries = left_out(project)
    assert {method: entry["stage"] for method, entry in entries.items()} == {"nf4": "quantize", "int8": "integrity"}
    assert entries["int8"]["compared"]
    int8 = project.read("summary.json")["cells"][1]
    assert int8["integrity_verified"] is None
    assert int8["kl_nats_mean"] > 0
    with open(project / "results/summary.csv", newline="", encoding="utf-8") as stream:
        rows = {(row["model"], row["method"]): row for row in csv.DictReader(stream)}
    assert len(rows) == 8
    assert rows["reference", "nf4"]["left_out"] == "stage quantize failed: made to fail"
    assert rows["reference", "nf4"]["perplexity"] == ""
    assert rows["reference", "awq"]["left_out"] == ""
    assert rows["other", "baseline"]["left_out"] == "stage fetch failed: made to fail"


@pytest.mark.parametrize("folder", ["results/reference", "results"])
def test_the_reports_name_what_was_left_out(failed, folder):
    for text in texts(failed[0] / folder):
        assert "stage quantize failed: made to fail" in text
        assert "its integrity is missing: stage integrity failed" in text
        assert "int8" in text
    if folder == "results":
        assert all("stage fetch failed: made to fail" in text for text in texts(failed[0] / folder))


def test_a_model_without_cells_has_a_page_that_says_so(failed):
    for text in texts(failed[0] / "results/other"):
        assert "No cell of this model can be compared" in text
        assert "stage fetch failed: made to fail" in text


def test_the_next_run_does_what_failed_and_what_follows(failed, tmp_path):
    project = failed[0].copy(tmp_path / "project")
    (project / FAIL).unlink()
    jobs = project.jobs()
    assert {job("nf4", "quantize"), job("int8", "integrity"), "other: fetch", *ENDS} <= jobs
    assert not any(name.startswith(("reference × awq", "reference × baseline")) for name in jobs)
    # Taking out what failed is a way to mend it, too: the summary is made again, for it names the failure.
    project.edit("evaluate/models", ["reference"])
    project.edit("evaluate/methods", ["baseline", "awq"])
    assert project.jobs() == ENDS


def test_a_baseline_that_fails_leaves_nothing_to_compare(finished):
    """Named as the target of the summary alone; the reports were not asked for, and are made again by the next run.

    Meanwhile config.yaml is being edited, and is no YAML just then: the run goes on with what it began with.
    """
    for name in ("baseline/perplexity.json", "summary.json"):
        finished.path(name).unlink()
    config, wrapper = finished.config(), finished / PYTHON
    edits = wrapper.read_text(encoding="utf-8").replace("exit 1", "echo '{' > config.yaml; exit 1")
    wrapper.write_text(edits, encoding="utf-8")
    (finished / FAIL).write_text("quantharm.perplexity --quantization results/reference/baseline", encoding="utf-8")
    run = finished.snakemake("results/reference/summary.json", "results/reference/report.html")
    assert run.code != 0
    assert methods(finished) == []
    entries = left_out(finished)
    assert entries["baseline"]["reason"] == "made to fail"
    assert entries["nf4"]["reason"] == "it has no baseline to be compared with: made to fail"
    for text in texts(finished / "results/reference"):
        assert "No cell of this model can be compared" in text
        assert "51." not in text
    assert (finished / "results/reference/tables/perplexity.csv").read_text().count("made to fail") == 4
    (finished / FAIL).unlink()
    finished.write_config(config)
    assert finished.jobs() >= {job("baseline", "perplexity"), *ENDS}


def test_a_failed_check_leaves_its_cell_out_or_marks_it(finished):
    path = finished.path("nf4/quantization.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    del record["record_sha256"]
    path.write_text(json.dumps(record | {"bits_per_weight": 8.4}), encoding="utf-8")
    os.utime(path, ns=(0, finished.path("nf4/checkpoint").stat().st_mtime_ns))
    for name in ("nf4/checks.json", "summary.json"):
        finished.path(name).unlink()
    assert finished.snakemake("results/reference/summary.json").code != 0
    assert methods(finished) == ["baseline", "int8", "awq"]
    assert left_out(finished)["nf4"]["stage"] == "checks"
    assert left_out(finished)["nf4"]["reason"].startswith("reference × nf4 failed bits_per_weight (")

    finished.edit("on_failed_check", "report")
    finished.run("results/reference/EVALUATION_SUMMARY.md", "--rerun-triggers", "mtime", "params", "input")
    assert methods(finished) == ["baseline", "int8", "nf4", "awq"]
    assert left_out(finished) == {}
    assert "**Failed checks.** nf4: bits" in texts(finished.path("."))[1]
    assert finished.jobs() >= ALL
