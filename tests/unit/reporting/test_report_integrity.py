"""What the report says of integrity: tables and sentences by hand, and the measured rates that it shows."""

import importlib.util
from types import SimpleNamespace

import pandas
import pytest
from scipy import stats

from quantharm.common.errors import UserError
from quantharm.reporting import detection
from quantharm.reporting.detection import NATIVE, NOTHING, ONLY_AWQ, RANDOM
from quantharm.reporting.tables import integrity
from quantharm.reporting.tables.table import markdown_table

HEAD = "quantizer,change,expected,matrices,detected,recovered,ratio_lowest,ratio_median,ratio_highest,distinct_lowest\n"


def rate(quantizer, change, detected, recovered=None, matrices=20, expected="x", ratio=0.9):
    recovered = detected if recovered is None else recovered
    figures = dict.fromkeys(("ratio_lowest", "ratio_median", "ratio_highest"), ratio)
    figures |= {"distinct_lowest": 0.95, "seen_as": ""}
    named = {"quantizer": quantizer, "change": change, "expected": "" if quantizer in (NOTHING, RANDOM) else expected}
    return named | {"matrices": matrices, "detected": detected, "recovered": recovered} | figures


RATES = [
    rate(RANDOM, "none", 0, ratio=0.85),
    rate(NOTHING, "none", 1),
    rate(NOTHING, "noise", 0),
    rate("A", "none", 20, 15),
    rate("A", "noise", 9, 0),
    rate("B", "none", 20),
    rate("B", "noise", 10),
    rate("A", ONLY_AWQ, 18),
    rate(NATIVE, "none", 20, 0, expected=""),
]


def test_the_detection_table_by_hand():
    table = detection.detection_table(RATES)
    assert [column.key for column in table.columns] == ["quantized_with", "detected/none", "detected/noise"]
    shown = {row[0].text: [(c.text, c.aside, c.tone) for c in row[1:]] for row in table.rows}
    assert shown == {
        NOTHING: [("1/20", "", "fail"), ("0/20", "", "pass")],
        "A": [("20/20", "15 right", "pass"), ("9/20", "0 right", "undecided")],
        "B": [("20/20", "", "pass"), ("10/20", "", "undecided")],
        NATIVE: [("20/20", "", "undecided"), ("–", "", "")],
    }
    unseen = detection.detection_table([*RATES, rate("C", "none", 0)]).rows[-1][1]
    assert (unseen.text, unseen.tone) == ("0/20", "fail")


def test_storage_formats_share_a_column():
    rows = [rate(NOTHING, f"none, {d}", n, ratio=r) for d, n, r in (("a", 0, 0.9), ("b", 1, 0.8), ("c", 0, 0.95))]
    rows += [rate("A", "none, a", 20, 18), rate("A", "none, b", 19)]
    table = detection.detection_table(rows)
    assert [column.label for column in table.columns] == ["Quantized with", detection.AS_STORED]
    assert [(line[1].text, line[1].aside) for line in table.rows] == [("1/60", ""), ("39/40", "37 right")]
    assert "1 of 60 matrices never quantized (lowest ratio 0.80" in detection.detection_notes(rows)[0]


def test_the_sentences_under_it_by_hand():
    assert [note for note in detection.detection_notes(RATES) if not note.startswith(BY_CHECKPOINT)] == [
        "False alarms: 1 of 60 matrices never quantized (lowest ratio 0.85, and 0.95 of the distinct values expected).",
        "Evades, “noise”: A.",
        "AWQ with its scales folded back into the norms: 18 of 20.",
        "Native low-bit training looks the same as quantization: of ternary weights, one scale a matrix, as it stores "
        "them, 100\u00a0% of 20 matrices are called dequantized.",
    ]


BY_CHECKPOINT = ("A checkpoint is called", "Checkpoints called")


def test_rates_are_stated_by_checkpoint():
    """One traced matrix of 39 is no dequantized checkpoint, four are; clean ones never quantized count apart."""
    real = f"{detection.REAL}mini"
    rows = [
        rate(real, "none", 1) | {"matrices": 39},
        rate(real, "noise", 4) | {"matrices": 39},
        rate("A", "none", 1) | {"matrices": 39},
        rate("B", "none", 39) | {"matrices": 39},
    ]
    notes = [note for note in detection.detection_notes(rows) if note.startswith(BY_CHECKPOINT)]
    assert stats.binom.cdf(5, 78, 0.13006) == pytest.approx(0.05, abs=1e-4)  # the bound of 5 alarms in 78 matrices
    assert "fewer than 13.01" in notes[0]
    assert notes[0].endswith("1 of 2 called so.")
    assert notes[1:] == ["Checkpoints called dequantized, “none”: 1 of 2."]


@pytest.mark.parametrize("text", ["", HEAD + "a,b,,x,1,1,0,0,0,0\n", "a,b\n1,2\n"])
def test_a_damaged_file_of_rates_is_one_sentence(tmp_path, text):
    path = tmp_path / "rates.csv"
    path.write_text(text)
    with pytest.raises(UserError, match="cannot be read"):
        detection.read_rates(path)


@pytest.fixture(scope="module")
def benchmark(root):
    path = root / "tests/benchmark/integrity_detection.py"
    specification = importlib.util.spec_from_file_location("integrity_detection", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_measured_rates_are_whole_and_the_page_is_made_of_them(benchmark, root):
    rates = detection.read_rates()
    own = [row for row in rates if not detection.is_real(row)]
    assert [(row["quantizer"], row["change"]) for row in own] == benchmark.rows_to_make()
    assert {row["quantizer"] for row in rates if detection.is_real(row)} == {
        "nothing, real: MiniLM-L6",
        "SmolLM2-135M, 4 bits in 32",
    }
    assert (root / "tests/benchmark/integrity_detection.md").read_text(encoding="utf-8") == benchmark.page(rates)


def test_the_pages_table_is_made_of_the_measured_rates(root):
    rates = detection.read_rates()
    table = detection.short_table(rates)
    assert markdown_table(table) in (root / "docs/integrity.md").read_text(encoding="utf-8")
    matrices = sum(r["matrices"] for r in rates if r["change"] != ONLY_AWQ and not detection.is_real(r))
    assert sum(int(cell.text.split(" of ")[1]) for row in table.rows for cell in row[1:]) == matrices


def test_a_known_row_is_not_measured_again_and_a_missing_one_is(benchmark, tmp_path, monkeypatch, capsys):
    made = []

    def make(quantizer, change, _):
        made.append((quantizer, change))
        return {k: v for k, v in rate(quantizer, change, 3).items() if k not in ("quantizer", "change")}

    monkeypatch.setattr(benchmark, "make_row", make)
    path, page = tmp_path / "rates.csv", tmp_path / "page.md"
    monkeypatch.setattr("sys.argv", ["x", "--rates", str(path), "--page", str(page)])
    benchmark.main()
    assert made == benchmark.rows_to_make()
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:3] + lines[4:]) + "\n")
    made.clear()
    benchmark.main()
    assert made == benchmark.rows_to_make()[2:3]
    assert path.read_text().splitlines() == lines
    assert page.read_text() == benchmark.page(detection.read_rates(path))


# ---------------------------------------------------------------- defenses


def results(**given):
    cell = SimpleNamespace(method="nf4", integrity=None, checks={"checks": []})
    cell = SimpleNamespace(**(vars(cell) | given.pop("cell", {})))
    known = {"cells": [cell], "methods": [cell], "monitor_history": None, "noise_study": None, "calibration_ranges": {}}
    return SimpleNamespace(**(known | given))


def defenses(**given) -> dict[str, str]:
    return {row[0].text: row[1].text for row in integrity.defenses_table(results(**given)).rows}


def test_defenses_that_were_not_run_say_so():
    assert set(defenses().values()) == {"not run"}


def test_defenses_by_hand():
    integrity = {"verified": True, "if_dequantized": {"verdict": "dequantized"}}
    check = {"name": "calibration", "status": "pass"}
    shown = defenses(
        cell={"integrity": integrity, "checks": {"checks": [check]}},
        monitor_history=pandas.DataFrame({"alarm": [True, False]}),
        noise_study=[{"method": "nf4", "sigma_half_widths": s} for s in (0.0, 0.3, 0.1)],
        calibration_ranges={"awq": 0.025},
    )
    assert shown == {
        "Model integrity verification": "1 checkpoint, no finding; dequantized, 1 of 1 would be noticed",
        "Quality monitoring": "2 runs, 1 alarm; the last: no alarm",
        "Weight noise injection": "σ of 0.1 and 0.3 half steps, before nf4",
        "Calibration validation": "nf4: check passed; awq: KL ranges over 0.0250 nats by the choice of samples",
    }
    against = defenses(cell={"integrity": {"verified": False, "if_dequantized": None}})
    assert against["Model integrity verification"] == "findings against nf4"
