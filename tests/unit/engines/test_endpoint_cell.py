"""A cell behind an address goes through every stage, beside another, into a summary, a gate and a page."""

import json

import pytest
import torch
from fake_server import KEY, Fake, serving
from stage_chain import Chain
from transformers import AutoModelForCausalLM

from quantharm import fetch
from quantharm.common.left_out import without_weights
from quantharm.config.engines import NO_WEIGHTS
from quantharm.config.methods import completed_method
from quantharm.engines.endpoint_model import EndpointModel
from quantharm.gating import judging

METHODS = ("baseline", "nf4", "served")
BUDGET = {"methods": {}, "models": {}, "worse": {}, "against": None, "undecided": "fail", "not_measured": "fail"}


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny, byte_tokenizer):
    """(chain, address): everything of three cells; the server's model is the model with noise on its weights."""
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("THE_KEY", KEY)
        tiny("llama", vocab_size=258).save_pretrained(folder / "model")
        byte_tokenizer().save_pretrained(folder / "model")
        behind = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
        torch.manual_seed(4)
        for parameter in behind.parameters():
            parameter.data += 0.02 * parameter.std() * torch.randn_like(parameter)
        (folder / "tiny").mkdir()
        source = fetch.describe("tiny", str(folder / "model"), folder / "model", None, False, False)
        chain = Chain(folder / "tiny", source, monkeypatch).baseline()
        with serving(Fake(behind, "prompt_logprobs")) as url:
            entry = {"engine": "openai", "url": f"{url}/v1/", "model": "tiny", "api_key_variable": "THE_KEY"}
            settings = completed_method("served", {"quantizer": "endpoint", **entry})
            settings.pop("quantizer")
            chain.call("quantize", "nf4")
            chain.call("quantize", "served", settings=json.dumps(settings))
            for method in METHODS[1:]:
                for stage in ("generation", "perplexity", "divergence"):
                    chain.call(stage, method)
            kept = {"rows": folder / "kept.parquet", "output": folder / "kept.json"}
            with pytest.MonkeyPatch.context() as stopped:
                stopped.setattr(EndpointModel, "finished", lambda _: None)
                chain.call("perplexity", "served", **kept)
            chain.call("perplexity", "served", **kept)
            for parameter in behind.parameters():  # the server is started again with other weights
                parameter.data += 0.5 * parameter.std() * torch.randn_like(parameter)
            assert "serves other weights now than when tiny × served" in chain.fails("divergence", "served")
            for method in METHODS:
                chain.call("checks", method)
                if method != "served":
                    chain.call("integrity", method)
        left_out = json.dumps([without_weights("tiny", "served", NO_WEIGHTS)])
        cells = [str(chain / method) for method in METHODS]
        summary = {name: str(chain / f"summary.{name}") for name in ("parquet", "csv", "json")}
        files = [word for name, path in summary.items() for word in (f"--{name}", path)]
        chain.run("summary", ["--cells", *cells, "--left-out", left_out, *files])
        page = ["--html", "report.html", "--markdown", "report.md", "--figures", "figures", "--tables", "tables"]
        chain.run("report", ["--model", str(chain.folder), *(str(chain / w) if "-" not in w else w for w in page)])
        yield chain


def test_its_figures_are_exact_but_for_a_bound(run):
    rows = {row["method"]: row for row in run.read("summary.json")["cells"]}
    mine, other = rows["served"], rows["nf4"]
    assert mine["kl_is_lower_bound"]
    assert not other["kl_is_lower_bound"]
    assert 0 < mine["kl_nats_mean"] == mine["kl_lower_bound_nats_mean"]
    assert 0 < other["kl_lower_bound_nats_mean"] < other["kl_nats_mean"]
    missed = run.read("nf4/divergence.json")["kl_lower_bound"]["missed_share"]
    assert missed == pytest.approx(1 - other["kl_lower_bound_nats_mean"] / other["kl_nats_mean"])
    assert mine["perplexity"] == pytest.approx(rows["baseline"]["perplexity"], rel=0.1)
    for key in ("weight_bytes", "checkpoint_bytes", "parameters", "compression", "memory_peak_bytes"):
        assert mine[key] is None
    assert mine["integrity_verified"] is None
    assert mine["checks_failed"] == []


def test_its_records_say_what_was_asked_and_hold_no_key(run):
    engine = run.read("served/perplexity.json")["provenance"]["engine"]
    assert engine["dialect"] == "prompt_logprobs"
    assert engine["version"] == "1.2.3"
    skipped = {c["name"]: c for c in run.read("served/checks.json")["checks"] if c["status"] == "skipped"}
    assert {"reload", "method_is_real", "kernel", "engine"} <= skipped.keys()
    for name in ("kernel", "stored_weights"):
        assert NO_WEIGHTS in skipped[name]["explanation"]
    assert not (run / "served/answered").exists()
    assert not [path for path in run.folder.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def test_windows_answered_before_a_stop_took_no_time(run):
    """Their scores lay in files: nothing was asked, and no rate is known."""
    first, again = run.read("served/perplexity.json"), json.loads((run.folder.parent / "kept.json").read_text())
    assert first["perplexity"] == pytest.approx(again["perplexity"])
    assert first["tokens_per_second"] == pytest.approx(64 * first["windows"] / first["seconds"])
    assert again["tokens_per_second"] is None


def test_the_page_marks_it_and_says_what_the_bound_misses(run):
    page = (run / "report.md").read_text(encoding="utf-8")
    assert "a bound from 20 tokens misses" in page
    assert NO_WEIGHTS in page
    bound = run.read("served/divergence.json")["kl_nats"]["mean"]
    assert f"≥\u00a0{bound:.3g}"[:7] in page
    assert "served ≥" in page


def test_a_gate_has_no_size_of_it(run):
    from quantharm.report import default_thresholds
    from quantharm.reporting.reading import read_results

    results = read_results(run.folder, default_thresholds())
    lines = judging.judged(results, BUDGET | {"kl_nats": 100.0, "weight_bytes": 1e12})
    of_mine = {entry["limit"]: (entry["verdict"], entry["reason"]) for entry in lines if entry["method"] == "served"}
    assert of_mine["kl_nats"][0] == "undecided"
    assert "lower bound" in of_mine["kl_nats"][1]
    assert of_mine["weight_bytes"] == ("not measured", NO_WEIGHTS)


def test_a_bound_is_marked_on_divergence_alone(run):
    """Its perplexity, times and answers are figures like any other cell's."""
    page = (run / "report.md").read_text(encoding="utf-8")
    headers = [line for line in page.splitlines() if line.startswith("| ") and "served" in line and "nf4" in line]
    assert [line for line in headers if "served ≥, nats" in line]
    assert [line for line in headers if "served, s |" in line]
    assert not [line for line in headers if "served ≥" in line and "nats" not in line]
    alternatives = [line for line in page.splitlines() if line.startswith("![")]
    assert not [line for line in alternatives if "served ≥" in line and "KL" not in line]


def test_a_run_of_endpoints_alone_has_an_overview(run):
    """One entry in the config is enough for a page; a chart of sizes has nothing to show then."""
    from quantharm.report import default_thresholds
    from quantharm.reporting.charts.overview import overview_figures
    from quantharm.reporting.reading import read_results

    results = read_results(run.folder, default_thresholds())
    results.cells = [cell for cell in results.cells if cell.method != "nf4"]
    charts = {figure.key: figure.chart.to_dict() for figure in overview_figures([results])}
    assert "sizes are not seen" in str(charts["overview-quality-against-size"])
    drawn = charts["overview-perplexity"]["datasets"].values()
    assert {row["method"] for rows in drawn for row in rows if "method" in row} == {"served"}
