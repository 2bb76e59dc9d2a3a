"""The report of three models × five synthetic methods, made whole."""

import html.parser
import json
import re
import shutil
import subprocess
import sys

import pandas
import pytest
import synthetic
from report_runs import ROOT, outputs, run_report

from quantharm.common.files import read_json, write_json
from quantharm.report import default_thresholds
from quantharm.reporting import names as report_names
from quantharm.reporting.reading import read_results
from quantharm.reporting.tables.overview import ran_on_one_device

INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
THRESHOLDS = default_thresholds()
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Structure(html.parser.HTMLParser):
    """Element names, ids and links; fails on elements that are not closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.names, self.ids, self.links = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.names.append(tag)
        given = dict(attributes)
        if "id" in given:
            self.ids.append(given["id"])
        self.links += [given[key] for key in ("href", "src", "xlink:href") if given.get(key)]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


def structure(text: str) -> Structure:
    parsed = Structure()
    parsed.feed(text)
    assert not parsed.open
    return parsed


def pages(reports):
    return [reports.model(m) / "report.html" for m in synthetic.MODELS] + [reports.results / "report.html"]


def test_every_file_is_there(reports):
    for model in synthetic.MODELS:
        folder = reports.model(model)
        for name in report_names.FIGURES:
            assert (folder / "figures" / f"{name}.svg").read_text().startswith("<svg")
            assert (folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        for name in report_names.TABLES:
            table = pandas.read_csv(folder / "tables" / f"{name}.csv")
            assert list(table.columns) == list(pandas.read_parquet(folder / "tables" / f"{name}.parquet").columns)
            assert len(table) or name in ("budget", "engines", "caches", "stored-types")  # have none
    for name in report_names.OVERVIEW_FIGURES:
        assert (reports.results / "figures" / f"{name}.svg").is_file()
    for name in report_names.OVERVIEW_TABLES:
        assert (reports.results / "tables" / f"{name}.csv").is_file()


def test_pages_are_small(reports):
    for page in pages(reports):
        assert page.stat().st_size < 5e6


def test_a_report_waits_for_no_import_of_torch():
    """Which would take longer than all else: a report is made of records, not of models."""
    code = "import sys, quantharm.report; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT / "workflow")
    assert run.returncode == 0, run.stderr
    assert "quantharm.reporting.results" in run.stdout.split()
    assert not {"torch", "transformers", "datasets"} & set(run.stdout.split())


def test_html_is_well_formed_and_asks_for_nothing(reports):
    for page in pages(reports):
        text = page.read_text(encoding="utf-8")
        parsed = structure(text)
        assert len(parsed.ids) == len(set(parsed.ids))
        assert parsed.names.count("script") == 1
        for link in parsed.links:
            inside = link.startswith("#") and link[1:] in parsed.ids
            assert inside or link == "data:," or re.fullmatch(r"[\w.-]+/report\.html", link), link
        assert "url(http" not in text


def test_what_models_wrote_is_escaped(reports):
    for model in synthetic.MODELS:
        text = (reports.model(model) / "report.html").read_text(encoding="utf-8")
        assert "&lt;script&gt;alert(" in text
        assert "<script>alert(" not in text
        assert "<b>from nf4</b>" not in text
        assert not INVISIBLE.search(text)
        assert "⟨U+202E⟩" in text
        markdown = (reports.model(model) / "EVALUATION_SUMMARY.md").read_text(encoding="utf-8")
        assert not re.search(r"(?<!\\)<script", markdown)
        assert not INVISIBLE.search(markdown)


def test_markdown_tables_keep_their_columns(reports):
    for folder in [*map(reports.model, synthetic.MODELS), reports.results]:
        block: list[int] = []
        for line in (folder / "EVALUATION_SUMMARY.md").read_text(encoding="utf-8").splitlines():
            if line.startswith("|"):
                block.append(len(re.findall(r"(?<!\\)\|", line)))
            else:
                assert len(set(block)) <= 1, block
                block = []


def test_sections_of_the_navigation_exist(reports):
    text = (reports.model("alpha-7b") / "report.html").read_text(encoding="utf-8")
    sections = re.findall(r'<section id="([^"]+)"', text)
    assert re.findall(r'<li><a href="#([^"]+)"', text) == sections
    assert sections[0] == "summary"


def test_failed_checks_are_marked_everywhere(reports):
    folder = reports.model("alpha-7b")
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "Do not use bad-int4" in text
    assert "not to be believed" in text
    assert text.count("bad-int4 †") >= 8
    risk = pandas.read_csv(folder / "tables" / "deployment-risk.csv")
    assert set(risk["risk/bad-int4"]) == {"not assessed: failed checks"}
    for words in ("closest", "smallest", "fastest"):
        overall = pandas.read_csv(folder / "tables" / "overall.csv").set_index("figure")
        assert words not in overall.loc["best_use", "bad-int4"]


def test_words_follow_the_figures(reports):
    folder = reports.model("alpha-7b")
    perplexity = pandas.read_csv(folder / "tables" / "perplexity.csv").set_index("method")
    assert perplexity.loc["int8", "verdict"] == "no measurable change"
    assert perplexity.loc["nf4", "verdict"] == "low"
    divergence = pandas.read_csv(folder / "tables" / "divergence.csv").set_index("method")
    assert divergence.loc["int8", "verdict"] == "negligible"
    assert divergence.loc["nf4", "verdict"] == "low"
    defense = pandas.read_csv(folder / "tables" / "defense.csv").set_index("criterion")
    assert defense.loc["Perplexity near the baseline", "outcome/awq"] == "pass"
    assert defense.loc["Integrity verified", "outcome/awq"] == "pass"
    assert defense.loc["Integrity verified", "outcome/nf4"] == "fail"
    integrity = pandas.read_csv(folder / "tables" / "integrity.csv").set_index("method")
    assert integrity.loc["nf4", ["verified", "files"]].tolist() == ["finding", "not the same"]
    assert integrity.loc["int8", ["verified", "files", "scan"]].tolist() == [
        "no finding",
        "as recorded",
        "openly quantized",
    ]
    assert integrity["if_dequantized"].tolist() == ["–", "noticed", "noticed", "not noticed", "noticed"]
    assert integrity["behaviour"].tolist() == ["no", "yes", "yes", "yes", "yes"]
    benchmark = pandas.read_csv(folder / "tables" / "benchmark.csv").set_index("method")
    assert benchmark.loc["awq", "decode_verdict"] == "faster"
    assert benchmark.loc["nf4", "decode_verdict"] == "faster"  # captured, though slower eager
    assert benchmark.loc["int8", "decode_verdict"] == "slower"
    limits = pandas.read_csv(folder / "tables" / "decode-limits.csv").set_index("method")
    assert limits.loc["nf4", ["host_wait_share", "joules_per_new_token", "captured_joules_per_new_token"]].tolist() == [
        0.6,
        9.5,
        3.25,
    ]
    assert benchmark.loc["int8", "captured_decode_tokens_per_second_median"].startswith("LLM.int8")


def test_times_of_two_devices_do_not_stand_side_by_side(reports):
    table = pandas.read_csv(reports.results / "tables" / "overview.csv")
    assert "decode_tokens_per_second" not in table.columns
    assert "different devices" in (reports.results / "report.html").read_text(encoding="utf-8")


def test_a_model_over_two_gpus_says_so_and_is_not_timed_beside_one_on_one(reports, tmp_path):
    folders = [tmp_path / model for model in ("alpha-7b", "beta-4b")]  # on one kind of GPU
    for folder in folders:
        shutil.copytree(reports.model(folder.name), folder)
    beside = read_results(folders[0], THRESHOLDS), read_results(folders[1], THRESHOLDS)
    assert ran_on_one_device(list(beside))
    for record in folders[1].glob("*/generation.json"):
        given = read_json(record)
        write_json(record, given | {"provenance": given["provenance"] | {"gpus": 2}})
    spread = read_results(folders[1], THRESHOLDS)
    assert spread.device == f"{beside[1].device} × 2"
    assert not ran_on_one_device([beside[0], spread])
    assert run_report(*outputs(folders[1]), f"--model={folders[1]}").returncode == 0
    assert "<span>NVIDIA H200 × 2</span>" in (folders[1] / "report.html").read_text(encoding="utf-8")
    assert " · NVIDIA H200 × 2 · " in (folders[1] / "EVALUATION_SUMMARY.md").read_text(encoding="utf-8")


def test_cells_of_two_devices_are_refused(reports, tmp_path):
    folder = tmp_path / "alpha-7b"
    shutil.copytree(reports.model("alpha-7b"), folder)
    path = folder / "nf4" / "generation.json"
    write_json(path, json.loads(json.dumps(read_json(path)).replace("NVIDIA H200", "NVIDIA L4")))
    answer = run_report(f"--model={folder}", *outputs(tmp_path / "out"))
    assert answer.returncode == 1
    assert answer.stderr.startswith("error: alpha-7b × nf4 ran its stage generation with device 'NVIDIA L4'")
    assert len(answer.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("methods", [["baseline"], ["baseline", "bad-int4"], ["baseline", "int8"]])
def test_fewer_methods_make_a_report_too(tmp_path, methods):
    folder = synthetic.make_model(tmp_path, "beta-4b", methods)
    answer = run_report(f"--model={folder}", *outputs(tmp_path / "out"))
    assert answer.returncode == 0, answer.stderr
    structure((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    answer = run_report("--models", str(folder), *outputs(tmp_path / "all"))
    assert answer.returncode == 0, answer.stderr


def test_results_without_worst_positions_say_so(reports, tmp_path):
    folder = tmp_path / "beta-4b"
    shutil.copytree(reports.model("beta-4b"), folder)
    for path in folder.glob("*/divergence.json"):
        record = read_json(path)
        del record["worst_positions"]
        write_json(path, record)
    answer = run_report(f"--model={folder}", *outputs(tmp_path / "out"))
    assert answer.returncode == 0, answer.stderr
    assert "Not recorded in these results" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_synthetic_weights_are_marked_and_not_judged(reports, tmp_path):
    folder = tmp_path / "beta-4b"
    shutil.copytree(reports.model("beta-4b"), folder)
    summary = read_json(folder / "summary.json")
    for row in summary["cells"]:
        row["synthetic"] = True
    write_json(folder / "summary.json", summary)
    for name, arguments in {"one": [f"--model={folder}"], "all": ["--models", str(folder)]}.items():
        answer = run_report(*arguments, *outputs(tmp_path / name))
        assert answer.returncode == 0, answer.stderr
    page = (tmp_path / "one" / "report.html").read_text(encoding="utf-8")
    parsed = structure(page)
    assert {"harm", "recommendations", "risks", "defense", "conclusion"}.isdisjoint(parsed.ids)
    assert {link[1:] for link in parsed.links if link.startswith("#")} <= set(parsed.ids)
    for text in (page, (tmp_path / "one" / "EVALUATION_SUMMARY.md").read_text(encoding="utf-8")):
        assert "Synthetic weights" in text
        for word in ("negligible harm", "low harm", "severe harm", "closest to the baseline", "On the Pareto front"):
            assert word not in text, word
    tables = tmp_path / "one" / "tables"
    for name, column in {"perplexity": "verdict", "divergence": "verdict", "harm": "verdict"}.items():
        verdicts = pandas.read_csv(tables / f"{name}.csv").set_index("method")[column]
        assert verdicts["nf4"] == "not judged: synthetic weights", name
    risks = pandas.read_csv(tables / "deployment-risk.csv")
    assert set(risks["risk/nf4"]) == {"not judged: synthetic weights"}
    overview = (tmp_path / "all" / "EVALUATION_SUMMARY.md").read_text(encoding="utf-8")
    assert "synthetic weights" in overview


def test_a_model_of_which_nothing_can_be_compared(tmp_path):
    """Every declared file is there and says why; what a log holds is shown as text."""
    reason = "it has no baseline to be compared with: <b>what | a log says</b>"
    entry = {"model": "m", "stage": "fetch", "reason": reason, "log": "results/logs/fetch/m.log", "compared": False}
    left_out = [entry | {"method": method} for method in ("baseline", "nf4")]
    write_json(tmp_path / "m/summary.json", {"cells": [], "left_out": left_out})
    done = run_report(f"--model={tmp_path / 'm'}", *outputs(tmp_path / "m"))
    assert done.returncode == 0, done.stderr
    assert {path.stem for path in (tmp_path / "m/tables").glob("*.csv")} == set(report_names.TABLES)
    assert {path.stem for path in (tmp_path / "m/figures").glob("*.svg")} == set(report_names.FIGURES)
    assert pandas.read_csv(tmp_path / "m/tables/perplexity.csv")["reason"].tolist() == [reason] * 2
    done = run_report("--models", str(tmp_path / "m"), *outputs(tmp_path))
    assert done.returncode == 0, done.stderr
    for folder in (tmp_path, tmp_path / "m"):
        page = (folder / "report.html").read_text(encoding="utf-8")
        structure(page)
        assert "stage fetch failed: it has no baseline to be compared with: &lt;b&gt;what | a log says" in page
        assert "what \\| a log says" in (folder / "EVALUATION_SUMMARY.md").read_text(encoding="utf-8")
