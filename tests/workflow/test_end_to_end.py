"""One real run: every result file of the design's section 4 is there and says what it should."""

import csv
import json
import math
import re

import pytest
from record_types import RECORDS, faults
from workflow_project import ENDS, FETCH, LOGITS, METHODS, TEXT, jobs_of

PROVENANCE = {"git_commit", "device", "versions"}
LONGEST_LINE = 400
KEYS = {
    "quantization": "model method quantizer settings source checkpoint_bytes weight_bytes bits_per_weight "
    "quantized_modules kept_modules seconds memory provenance",
    "perplexity": "protocol dataset_sha256 tokens_scored windows nll_mean_nats perplexity perplexity_ci95 "
    "bits_per_byte seconds tokens_per_second peak_memory_bytes provenance",
    "divergence": "kl_nats reverse_kl_nats_mean js_nats_mean top1_agreement delta_p by_category positions provenance",
    "generation": "prompts succeeded seconds_mean new_tokens_mean tokens_per_second by_category benchmark memory "
    "provenance",
    "checks": "checks failed provenance",
}
CHECKS = {
    "self_divergence",
    "reload",
    "method_is_real",
    "bits_per_weight",
    "kernel",
    "finite",
    "consistency",
    "same_text",
    "calibration",
}


@pytest.fixture(scope="module")
def project(built_in):
    return built_in[0]


def test_records_have_the_keys_of_their_types_and_no_others(project):
    files = [path for path in (project / "results/reference").rglob("*.json") if path.stem in RECORDS]
    assert {path.stem for path in files} > {"source", "quantization", "generation", "logits", "integrity", "summary"}
    for path in files:
        record = json.loads(path.read_text(encoding="utf-8"))
        assert faults(record, RECORDS[path.stem], path.stem) == [], path


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stage", KEYS)
def test_records_hold_the_keys_of_the_design(project, method, stage):
    record = project.read(f"{method}/{stage}.json")
    assert set(KEYS[stage].split()) <= set(record)
    assert set(record["provenance"]) >= PROVENANCE
    assert (record["model"], record["method"]) == ("reference", method)


@pytest.mark.parametrize("method", METHODS)
def test_nested_keys(project, method):
    divergence, generation = project.read(f"{method}/divergence.json"), project.read(f"{method}/generation.json")
    assert {"mean", "ci95", "median", "p90", "p99", "p99_9", "max"} <= set(divergence["kl_nats"])
    assert {"mean", "rms"} <= set(divergence["delta_p"])
    for category in divergence["by_category"].values():
        assert {"kl_nats_mean", "ci95", "top1_agreement", "positions"} <= set(category)
    assert len(divergence["by_category"]) - ("text" in divergence["by_category"]) == 3
    assert generation["prompts"] == generation["succeeded"] == 3  # one a category, of four
    benchmark = generation["benchmark"]
    assert {"prompt_tokens": 16, "new_tokens": 4}.items() <= benchmark.items()
    for figure in ("prefill_seconds", "decode_tokens_per_second"):
        assert {"median", "p90", "ci95"} <= set(benchmark[figure])
        assert any(isinstance(v, list) and len(v) >= 2 for k, v in benchmark[figure].items() if k != "ci95")


@pytest.mark.parametrize("method", METHODS)
def test_row_files_and_checkpoints(project, method):
    for name in ("generation.parquet", "perplexity.parquet", "divergence.parquet"):
        content = project.path(f"{method}/{name}").read_bytes()
        assert content[:4] == content[-4:] == b"PAR1"
    weights = list(project.path(f"{method}/checkpoint").glob("*.safetensors"))
    assert bool(weights) == (method != "baseline")  # the baseline's is a pointer, no copy


def test_files_of_the_model_and_of_all_models(project):
    source = project.read("source.json")
    assert source["weight_files"]
    assert source["context"] == 1024
    for name in ("baseline/trace.parquet", "baseline/logits.parquet", "summary.parquet", "summary.csv"):
        assert project.path(name).stat().st_size > 0
    assert (project / "results/summary.parquet").stat().st_size > 0
    assert (project / "results/summary.csv").stat().st_size > 0
    report = project.path("EVALUATION_SUMMARY.md").read_text(encoding="utf-8")
    assert all(f"| {method}" in report for method in METHODS)


def test_nothing_half_written_is_left(project):
    assert not list((project / "results").rglob("*.part"))


def test_the_summary_has_a_row_a_method(project):
    rows = project.read("summary.json")["cells"]
    assert [row["method"] for row in rows] == list(METHODS)
    for path in (project.path("summary.csv"), project / "results/summary.csv"):
        with open(path, newline="", encoding="utf-8") as stream:
            assert [row["method"] for row in csv.DictReader(stream)] == list(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_checks_pass(project, method):
    checks = {check["name"]: check for check in project.read(f"{method}/checks.json")["checks"]}
    assert set(checks) >= CHECKS
    assert {check["status"] for check in checks.values()} <= {"pass", "skipped"}
    assert project.read(f"{method}/checks.json")["failed"] == []


def test_the_noise_floor(project):
    """Where passes repeat to the last bit, as on one machine's CPU, there is none."""
    assert project.read("baseline/divergence.json")["kl_nats"] == dict.fromkeys(
        ("mean", "median", "p90", "p99", "p99_9", "max"), 0.0
    ) | {"ci95": project.read("baseline/divergence.json")["kl_nats"]["ci95"]}
    assert project.read("baseline/perplexity.json")["kl_nats"]["max"] == 0
    assert project.read("baseline/perplexity.json")["top1_agreement"] == 1


def test_the_store_takes_no_more_than_the_numbers_of_a_hidden_state(project):
    record = project.read("baseline/logits.json")
    assert (record["stored"], record["width"], record["vocabulary"]) == ("hidden_states", 256, 8192)
    dtype = record["metadata"]["hidden_states"]["dtype"]
    assert 1.0 <= record["bytes_per_entry"] / {"bfloat16": 2, "float32": 4}[dtype] <= 1.05
    assert record["output_head_bytes"] == pytest.approx(2 * 256 * 8192, rel=0.001)


@pytest.mark.parametrize("method", ["int8", "nf4", "awq"])
def test_the_text_has_its_divergence_from_the_same_pass(project, method):
    perplexity, divergence = project.read(f"{method}/perplexity.json"), project.read(f"{method}/divergence.json")
    baseline = project.read("baseline/perplexity.json")
    text = perplexity["text"]
    assert (text["windows"], text["positions"]) == (perplexity["windows"], perplexity["tokens_scored"])
    ratio = math.log(perplexity["perplexity"] / baseline["perplexity"])
    assert text["log_perplexity_ratio"] == pytest.approx(ratio, abs=1e-6)
    assert 0 < perplexity["kl_nats"]["mean"] < 0.3
    assert divergence["text"] == text
    assert divergence["by_category"]["text"]["kl_nats_mean"] == perplexity["kl_nats"]["mean"]


@pytest.mark.parametrize(("method", "largest_kl"), [("int8", 0.02), ("nf4", 0.3), ("awq", 0.3)])
def test_figures_are_plausible(project, method, largest_kl):
    """Wide limits: an order of magnitude above what each format costs this model is a fault of the format's code."""
    row = next(row for row in project.read("summary.json")["cells"] if row["method"] == method)
    assert 0 < row["kl_nats_mean"] < largest_kl
    assert abs(row["perplexity_change_percent"]) < 25
    assert (
        {"int8": 8, "nf4": 4, "awq": 4}[method] < row["bits_per_weight"] < {"int8": 8.3, "nf4": 4.4, "awq": 4.3}[method]
    )


@pytest.mark.parametrize("method", ["nf4", "awq"])
def test_four_bits_do_measurable_but_moderate_harm(project, method):
    """An AWQ whose weights are spoilt on the way (autoawq on a CPU) would raise the perplexity tenfold."""
    harmed, baseline = (project.read(f"{name}/perplexity.json")["perplexity"] for name in (method, "baseline"))
    assert 0.01 < harmed / baseline - 1 < 0.15


@pytest.mark.parametrize("method", ["int8", "nf4", "awq"])
def test_a_checkpoint_holds_what_its_record_says(project, method):
    record = project.read(f"{method}/quantization.json")
    assert len(record["quantized_modules"]) == 56
    assert record["output_head"] in record["kept_modules"]
    assert record["bits_per_weight"] == pytest.approx(record["bits_per_weight_formula"], rel=1e-6)
    assert record["checkpoint_bytes"] == sum(
        p.stat().st_size for p in project.path(f"{method}/checkpoint").glob("*.safetensors")
    )


@pytest.mark.parametrize(
    ("log", "bar"),
    [
        ("generation/reference/nf4.log", "generation"),
        ("perplexity/reference/nf4.log", "perplexity"),
        ("divergence/reference/nf4.log", "divergence"),
        ("logits/reference.log", "logits"),
    ],
)
def test_logs_hold_the_bar_of_their_stage(project, log, bar):
    text = (project / "results/logs" / log).read_text(encoding="utf-8")
    assert re.search(rf"{bar}: +100%", text)
    assert "Traceback" not in text


def test_each_model_job_has_a_benchmark(project):
    written = {path.relative_to(project / "results/benchmarks") for path in (project / "results").rglob("*.tsv")}
    stages = ("quantize", "generation", "perplexity", "divergence", "integrity", "checks")
    names = {f"{stage}/reference/{method}.tsv" for stage in stages for method in METHODS}
    others = {"logits/reference/baseline.tsv", "report/reference.tsv", "report.tsv"}
    assert names | others == {str(path) for path in written}


def test_the_terminal_stays_readable(built_in):
    result = built_in[1]
    assert max(map(len, result.lines)) <= LONGEST_LINE
    assert len(result.lines) < 8 * 31 + 60  # a handful of lines a job
    for word in ("quantharm.", " -m ", "Traceback", "Warning"):
        assert word not in result.output
    shown = jobs_of(result.output)
    assert shown >= {FETCH, TEXT, LOGITS, *ENDS, "reference × awq: quantize"}


def test_results_name_no_place_on_this_machine(project):
    """Folders named relative to the project stay relative in the records, so that results can be moved with it."""
    record = project.read("nf4/quantization.json")
    assert record["checkpoint"] == "results/reference/nf4/checkpoint"
    assert str(project.folder) not in json.dumps(record["source"])
