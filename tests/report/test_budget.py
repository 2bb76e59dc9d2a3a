"""The budget over whole results, by the stage's own command line, and the gate that follows it."""

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
import synthetic
import yaml
from report_runs import ROOT, run_module

from quantharm.common.files import read_json, write_json
from quantharm.config.validation import with_defaults
from quantharm.gating.forms import budget_table
from quantharm.gating.judging import judged
from quantharm.report import advice_on, by_the_budget, default_thresholds
from quantharm.reporting.assessment import assess
from quantharm.reporting.judgement import judge_all
from quantharm.reporting.reading import read_results

SCHEMA = ROOT / "workflow" / "schemas" / "config.schema.yaml"


def judge(folder: Path, models: list[Path], left_out=(), **limits) -> tuple[dict, Path]:
    schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))["properties"]["budget"]
    budget = with_defaults(limits, schema)
    done = run_module(
        "budget",
        "--models",
        *map(str, models),
        f"--left-out={json.dumps(list(left_out))}",
        f"--budget={json.dumps(budget)}",
        f"--thresholds={json.dumps(default_thresholds())}",
        f"--markdown={folder / 'budget.md'}",
        f"--junit={folder / 'junit.xml'}",
        f"--output={folder / 'budget.json'}",
    )
    assert done.returncode == 0, done.stderr
    return read_json(folder / "budget.json"), folder / "budget.json"


def verdicts(record: dict, **wanted) -> dict:
    return {
        (e["method"], e["limit"], e["subject"]): e["verdict"]
        for e in record["lines"]
        if all(e[key] == value for key, value in wanted.items())
    }


@pytest.fixture(scope="module")
def alpha(tmp_path_factory) -> Path:
    return synthetic.make_model(tmp_path_factory.mktemp("alpha"), "alpha-7b")


def test_every_kind_of_limit_on_whole_results(alpha, tmp_path):
    record, path = judge(
        tmp_path,
        [alpha],
        kl_nats=0.01,
        category_kl_nats={"Translation": 0.2, "Astrology": 1},
        text_kl_nats=0.1,
        perplexity_change_percent=10,
        recovery=0.98,
        compression=1.5,
        weight_bytes=5e9,
        decode_rate_ratio=0.5,
        checks=True,
        integrity=True,
    )
    lines = verdicts(record)
    assert [lines[m, "kl_nats", None] for m in ("int8", "nf4", "awq")] == ["pass", "breach", "breach"]
    assert [lines[m, "weight_bytes", None] for m in ("int8", "nf4", "awq")] == ["breach", "pass", "pass"]
    assert lines["nf4", "category_kl_nats", "Translation"] == "pass"
    assert lines["nf4", "category_kl_nats", "Astrology"] == "not measured"
    assert lines["nf4", "text_kl_nats", None] in ("pass", "undecided")
    assert lines["int8", "decode_rate_ratio", None] == "breach"
    assert lines["awq", "decode_rate_ratio", None] == "pass"
    assert lines["awq", "recovery", None] == "undecided"  # few items
    assert lines["bad-int4", "checks", None] == "breach"
    assert lines["bad-int4", "kl_nats", None] == "not measured"  # not to be believed
    assert lines["nf4", "integrity", None] == "breach"
    assert lines["baseline", "checks", None] == "pass"
    assert ("baseline", "kl_nats", None) not in lines
    assert not record["passed"]
    root = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert int(root.find("testsuite").get("tests")) == len(record["lines"])
    gate = run_module("gate", f"--budget={path}")
    assert gate.returncode == 1
    assert gate.stderr.startswith("error: The gate fails for alpha-7b × ")
    assert "Traceback" not in gate.stderr
    table = [x for x in gate.stdout.splitlines() if x.startswith("alpha-7b  ")]
    assert sum(x.endswith("breach") for x in table) == sum(v == "breach" for v in lines.values())
    assert len(table) == len(lines)
    assert "FAILED" in (tmp_path / "budget.md").read_text()


def test_a_budget_that_is_kept_names_the_method_to_ship(alpha, tmp_path):
    limits = {"kl_nats": 0.2, "perplexity_change_percent": 5, "methods": {"bad-int4": {"kl_nats": None}}}
    record, path = judge(tmp_path, [alpha], not_measured="pass", **limits)
    assert record["passed"]
    assert run_module("gate", f"--budget={path}").returncode == 0
    advice = record["advice"][0]
    assert advice["ship"] == "nf4"  # smaller than awq
    assert advice["within"] == ["int8", "nf4", "awq"]
    assert "Ship nf4: the smallest of the 3 methods (of 4) within the budget" in advice["sentence"]
    closest, _ = judge(tmp_path, [alpha], not_measured="pass", prefer="closest", **limits)
    assert closest["advice"][0]["ship"] == "int8"
    fastest, _ = judge(tmp_path, [alpha], not_measured="pass", prefer="fastest", **limits)
    assert fastest["advice"][0]["ship"] == "awq"


def test_with_no_method_within_the_budget_the_baseline_is_shipped(alpha, tmp_path):
    record, _ = judge(tmp_path, [alpha], kl_nats=1e-4)
    assert record["advice"][0]["ship"] == "baseline"
    assert "no method is within the budget" in record["advice"][0]["sentence"]


def test_an_equal_earlier_run_passes_and_a_better_one_does_not(alpha, tmp_path):
    margins = {"decode_rate_ratio": None}
    same, _ = judge(tmp_path, [alpha], against=str(alpha.parent), worse=margins, not_measured="pass")
    assert {v for k, v in verdicts(same).items() if k[0] != "bad-int4"} == {"pass"}
    assert all(e["value"] == 0 and e["ci95"] in (None, [0, 0]) for e in same["lines"] if e["verdict"] == "pass")
    # An earlier run in which nf4 was at a third: its files are not of its summary then, so figures are independent.
    earlier = tmp_path / "earlier.json"
    record = read_json(alpha / "summary.json")
    for row in record["cells"]:
        if row["method"] == "nf4":
            row |= {"kl_nats_mean": 0.01, "kl_nats_ci95": [0.009, 0.011]}
            row |= {"perplexity_change_percent": 0.5, "perplexity_change_percent_ci95": [0.4, 0.6]}
        if row["method"] == "awq":
            row["device"] = "NVIDIA L4"
    write_json(earlier, record)
    worse, _ = judge(tmp_path, [alpha], against=str(earlier), worse=margins)
    lines = verdicts(worse)
    assert lines["nf4", "worse.kl_nats", None] == "breach"
    assert lines["nf4", "worse.perplexity_change_percent", None] == "breach"
    assert lines["nf4", "worse.weight_bytes", None] == "pass"
    assert lines["int8", "worse.kl_nats", None] == "pass"
    assert lines["awq", "worse.kl_nats", None] == "not measured"
    assert any("has another device" in e["reason"] for e in worse["lines"] if e["method"] == "awq")
    # Speed: the same rates, whose difference no run of this length can show to be below a tenth.
    speed, _ = judge(tmp_path, [alpha], against=str(earlier), worse={"decode_rate_ratio": 0.1})
    assert verdicts(speed)["nf4", "worse.decode_rate_ratio", None] in ("pass", "undecided")


def test_paired_differences_are_found_where_independent_ones_are_not(alpha, tmp_path):
    """The same run with a KL that is 3 % more everywhere: only prompt by prompt can that be told from nothing."""
    import pandas

    from quantharm.common.files import read_parquet, write_parquet

    old = tmp_path / "old" / "alpha-7b"
    for method in ("baseline", "nf4"):
        shutil.copytree(alpha / method, old / method)
    rows = read_parquet(old / "nf4" / "divergence.parquet")
    write_parquet(old / "nf4" / "divergence.parquet", rows.assign(kl_nats=rows["kl_nats"] / 1.03))
    record = read_json(alpha / "summary.json")
    row = next(r for r in record["cells"] if r["method"] == "nf4")
    row["kl_nats_mean"] /= 1.03
    row["kl_nats_ci95"] = [bound / 1.03 for bound in row["kl_nats_ci95"]]
    write_json(old / "summary.json", record)
    limits = {"worse": {"kl_nats": 1e-4, "decode_rate_ratio": None}}
    assert isinstance(rows, pandas.DataFrame)
    thresholds = {"against": str(tmp_path / "old"), **limits}
    paired, _ = judge(tmp_path, [alpha], **thresholds)
    assert verdicts(paired)["nf4", "worse.kl_nats", None] == "breach"
    (old / "nf4" / "divergence.parquet").unlink()
    independent, _ = judge(tmp_path, [alpha], **thresholds)
    assert verdicts(independent)["nf4", "worse.kl_nats", None] == "undecided"


def test_a_model_that_could_not_be_run_is_a_line(alpha, tmp_path):
    entry = {"model": "gone", "method": None, "stage": "fetch", "reason": "offline", "log": "x", "compared": False}
    record, _ = judge(tmp_path, [alpha], [entry], kl_nats=2)
    line = record["lines"][-1]
    assert (line["model"], line["verdict"], line["accepted"]) == ("gone", "not measured", False)
    assert "stage fetch failed: offline" in line["reason"]


def with_tasks(recovery: float, ci95: list[float], flips: int, prompts: str = "p") -> dict:
    figures = {"items": 300, "recovery": recovery, "recovery_ci95": ci95, "flips": flips}
    overall = figures | {"smallest_detectable_difference": 0.041}
    return {"tasks_overall": overall, "tasks": {"endings": figures | {"prompts_sha256": prompts}}}


def test_recovery_and_flips_are_those_of_the_tasks(alpha, tmp_path):
    model = tmp_path / "alpha-7b"
    shutil.copytree(alpha, model)
    record = read_json(model / "summary.json")
    tasks = {
        "int8": with_tasks(0.99, [0.985, 0.995], 3),
        "nf4": with_tasks(0.97, [0.95, 0.99], 18),
        "awq": with_tasks(0.9, [0.88, 0.92], 60),
    }
    for row in record["cells"]:
        row |= tasks.get(row["method"], {"tasks": None, "tasks_overall": None})
    write_json(model / "summary.json", record)
    of_tasks, _ = judge(tmp_path, [model], recovery=0.98, flips=0.05)
    lines = verdicts(of_tasks)
    assert [lines[m, "recovery", None] for m in tasks] == ["pass", "undecided", "breach"]
    assert [lines[m, "flips", None] for m in tasks] == ["pass", "undecided", "breach"]
    undecided = next(e for e in of_tasks["lines"] if (e["method"], e["limit"]) == ("nf4", "recovery"))
    assert "300 items show a change" not in undecided["reason"]
    assert "so many items show a change of accuracy from 4.1 points on" in undecided["reason"]
    # Against an earlier run: awq lost a tenth of it; other items are not compared.
    for row in record["cells"]:
        if row["method"] == "awq":
            row |= with_tasks(1.0, [0.98, 1.02], 0)
        if row["method"] == "nf4":
            row |= with_tasks(1.0, [0.98, 1.02], 0, "other")
    write_json(tmp_path / "earlier.json", record)
    worse, _ = judge(tmp_path, [model], against=str(tmp_path / "earlier.json"), worse={"recovery": 0.02})
    lines = verdicts(worse)
    assert lines["awq", "worse.recovery", None] == "breach"
    assert lines["int8", "worse.recovery", None] == "pass"
    assert lines["nf4", "worse.recovery", None] == "not measured"


def test_loops_are_judged_on_long_answers_alone(alpha, tmp_path):
    model = tmp_path / "alpha-7b"
    shutil.copytree(alpha, model)
    short, _ = judge(tmp_path, [model], loops=0.1)
    assert set(verdicts(short).values()) == {"not measured"}
    assert any("take the protocol `long`" in e["reason"] for e in short["lines"])
    record = read_json(model / "summary.json")
    shares = {"int8": (0.0, [-0.05, 0.05]), "nf4": (0.1, [0.0, 0.2]), "awq": (0.4, [0.2, 0.6])}
    for row in record["cells"]:
        share, ci95 = shares.get(row["method"], (0.0, [0.0, 0.0]))
        row |= {"max_new_tokens": 1024, "answers_looping_added_share": share, "answers_looping_added_share_ci95": ci95}
    write_json(model / "summary.json", record)
    long, _ = judge(tmp_path, [model], loops=0.1)
    assert [verdicts(long)[method, "loops", None] for method in shares] == ["pass", "undecided", "breach"]


def test_the_report_recommends_by_the_budget(alpha):
    """The first screen and the recommendations name the method to ship; one outside the budget is not recommended."""
    schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))["properties"]["budget"]
    budget = with_defaults({"kl_nats": 0.2, "methods": {"nf4": {"kl_nats": 0.01}}, "not_measured": "pass"}, schema)
    results = read_results(alpha, default_thresholds())
    assessments = [assess(judgement, results) for judgement in judge_all(results).values()]
    lines = judged(results, budget)
    shown = by_the_budget(assessments, results, lines, budget)
    assert not shown["budget"]["passed"]
    assert shown["budget"]["advice"].startswith("Ship awq: the smallest of the 2 methods")
    by_method = {a.judged.method: a for a in shown["assessments"]}
    assert by_method["nf4"].headline == "Do not use nf4"
    assert by_method["nf4"].cautions == ["the budget: mean KL: breach"]
    assert by_method["awq"].headline == next(a.headline for a in assessments if a.judged.method == "awq")
    assert len(budget_table(lines).rows) == len(lines)
    assert by_the_budget(assessments, results, [], budget) == {"budget": None, "assessments": assessments}
    assert [a["ship"] for a in advice_on([results], budget)] == ["awq"]
    assert advice_on([results], with_defaults({}, schema)) == []
