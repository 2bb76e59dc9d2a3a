"""Engines side by side: which cells are of the same weights."""

from pathlib import Path

from quantharm.report import default_thresholds
from quantharm.reporting.results import Cell, Results
from quantharm.reporting.tables.engines import caches_table, calibration, engines_table, same_weights


def cell(method: str, quantizer: str, sha256: str, failed=(), bounds=None, **settings) -> Cell:
    quantization = {"quantizer": quantizer, "settings": settings, "weight_files": [{"sha256": sha256}]}
    row = {"perplexity_change_percent": 1.0, "perplexity_change_percent_ci95": None, "kl_nats_mean": 0.1}
    row |= {"perplexity_protocol": "concat-1024"}
    row |= {"kl_nats_ci95": None, "top1_agreement": 0.9, "top1_agreement_ci95": None}
    checks = {"checks": [{"name": "engine", "value": 0.003, "status": "pass"}], "failed": list(failed)}
    divergence = {} if bounds is None else {"kl_lower_bound": {"top_tokens": 20, "missed_share": bounds}}
    perplexity = {"provenance": {}, "kl_by_position": []}
    return Cell(method, row, quantization, perplexity, divergence, {}, checks, None, Path(method))


def results(*cells: Cell) -> Results:
    baseline = cell("baseline", "unquantized", "0")
    return Results("model", None, [baseline, *cells], default_thresholds())


def groups(*cells: Cell) -> list[list[str]]:
    return [[each.method for each in group] for group in same_weights(results(*cells))]


def test_a_file_made_twice_by_the_same_settings_is_one():
    made = [cell("q4", "gguf", "1", type="Q4_K_M"), cell("q4-llama", "gguf", "2", type="Q4_K_M", engine="llama.cpp")]
    other = cell("q8-llama", "gguf", "3", type="Q8_0", engine="llama.cpp")
    assert groups(*made, other) == [["q4", "q4-llama"], ["q8-llama"]]


def test_foreign_files_are_the_same_where_their_bytes_are():
    theirs = [cell("a", "pretrained", "1"), cell("b", "pretrained", "1", engine="llama.cpp")]
    assert groups(*theirs, cell("c", "pretrained", "2", engine="llama.cpp")) == [["a", "b"], ["c"]]


def test_a_quantized_cache_is_no_other_engine():
    cached = cell("q4-q8", "gguf", "1", type="Q4_K_M", engine="llama.cpp", kv_cache={"keys": "q8_0"})
    assert groups(cell("q4", "gguf", "1", type="Q4_K_M"), cached) == []


def test_both_engines_stand_in_one_row():
    table = engines_table(
        results(cell("q4", "gguf", "1", type="Q4_0"), cell("q4-llama", "gguf", "2", type="Q4_0", engine="llama.cpp"))
    )
    assert len(table.rows) == 1
    assert [c.label for c in table.columns if c.label.startswith("KL")] == [
        "KL, nats, transformers",
        "KL, nats, llama.cpp",
    ]


def test_a_row_whose_check_failed_is_marked():
    failed = cell("q6-llama", "gguf", "2", failed=["stored_weights"], type="Q6_K", engine="llama.cpp")
    sound = cell("q8-llama", "gguf", "3", type="Q8_0", engine="llama.cpp")
    rows = engines_table(results(cell("q6", "gguf", "1", type="Q6_K"), failed, sound)).rows
    assert [(row[0].text, row[0].aside) for row in rows] == [("q6", "† failed stored_weights"), ("q8-llama", "")]


def test_how_much_bounds_miss_is_a_range_or_one_share():
    def words(*missed: float) -> str:
        return calibration(results(*(cell(f"m{i}", "gguf", str(i), bounds=share) for i, share in enumerate(missed))))

    assert "a bound from 20 tokens misses 14.0\u00a0% to 24.0\u00a0% of the mean KL (2 methods" in words(0.24, 0.14)
    assert "misses 21.0\u00a0% of the mean KL (1 method of this model)" in words(0.21)
    assert "No other cell" in words()


def test_without_a_cache_or_another_engine_here_there_is_no_table_of_caches():
    served = cell("served", "endpoint", "", engine="openai")
    assert caches_table(results(cell("nf4", "bitsandbytes_4bit", "1"), served)).rows == []
