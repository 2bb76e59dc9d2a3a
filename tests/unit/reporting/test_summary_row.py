"""What a row of the summary holds of integrity, noise, calibration, batches and tasks."""

import pytest

from quantharm.common.files import write_json
from quantharm.common.paired import flat
from quantharm.reporting.summary_row import batch_figures, integrity_figures, treatment_figures
from quantharm.reporting.summary_tasks import task_figures

FILES = {"manifest": {"verified": True}, "signed_manifest": None, "behaviour": {"same_as_original": False}}


def integrity(**given) -> dict:
    record = {"verified": True, "explanation": "x", "scan": {"verdict": "packed"}, "if_dequantized": None}
    return record | FILES | given


def test_integrity_of_a_quantized_cell_and_of_a_baseline():
    seen = {"verdict": "dequantized", "method": "NF4"}
    assert integrity_figures(integrity(if_dequantized=seen)) == {
        "integrity_verified": True,
        "integrity_files_verified": True,
        "integrity_scan": "packed",
        "integrity_if_dequantized": "dequantized",
        "integrity_if_dequantized_seen_as": "NF4",
        "integrity_behaves_as_the_original": False,
        "integrity_explanation": "x",
    }
    assert integrity_figures(integrity())["integrity_if_dequantized"] is None
    # a signature says more than the hashes of when it was fetched
    forged = integrity_figures(integrity(signed_manifest={"verified": False}, verified=False))
    assert (forged["integrity_files_verified"], forged["integrity_verified"]) == (False, False)


def test_noise_and_calibration_of_a_cell():
    noise = {"sigma": 0.3, "relative_to": "half_step", "codes_changed": 0.1}
    samples = {"samples_reached": 20, "tokens_reached": 10240, "nll_mean_nats": 4.4, "text_nll_mean_nats": 4.0}
    figures = treatment_figures({"noise": noise}, {"calibration": samples})
    assert (figures["noise_sigma"], figures["noise_codes_changed"], figures["calibration_samples"]) == (0.3, 0.1, 20)
    assert figures["calibration_loss_ratio"] == pytest.approx(1.1)
    assert set(treatment_figures({}, {}).values()) == {None}


def test_integrity_where_nothing_was_there_to_scan():
    """A method that quantized nothing fails its checks; shown nevertheless, it has no format to be seen as."""
    figures = integrity_figures(integrity(if_dequantized={"verdict": "not scanned", "explanation": "no matrix"}))
    assert (figures["integrity_if_dequantized"], figures["integrity_if_dequantized_seen_as"]) == ("not scanned", None)


def test_figures_of_an_integrity_that_is_missing():
    assert set(integrity_figures(None)) == set(integrity_figures(integrity()))
    assert set(integrity_figures(None).values()) == {None}


def test_rates_and_memory_by_batch_are_columns_of_their_own():
    batches = [
        {"batch_size": 1, "decode_tokens_per_second": {"median": 50.0}, "peak_memory_bytes": 7},
        {"batch_size": 32, "decode_tokens_per_second": None, "peak_memory_bytes": None},
    ]
    assert flat(batch_figures(batches)) == {
        "decode_tokens_per_second/batch 1": 50.0,
        "decode_tokens_per_second/batch 32": None,
        "peak_memory_bytes/batch 1": 7,
        "peak_memory_bytes/batch 32": None,
    }


TASK = {"items": 320, "flips": 15, "mcnemar_p": 0.02, "accuracy": 0.6, "accuracy_ci95": [0.5, 0.7], "subtasks": ["t"]}


def test_p_values_of_tasks_are_corrected_for_methods_times_tasks(tmp_path):
    nothing = TASK | {"flips": None, "mcnemar_p": None}
    for name, figures in (("baseline", nothing), ("nf4", TASK), ("awq", TASK | {"mcnemar_p": 0.5})):
        record = {"tasks": {"t": figures, "u": figures}, "overall": figures}
        write_json(tmp_path / name / "tasks.json", record)
    figures = task_figures([tmp_path / name for name in ("baseline", "nf4", "awq")])
    assert figures["baseline"] == {"tasks": {"t": nothing, "u": nothing}, "tasks_overall": nothing}
    assert figures["nf4"]["tasks"]["t"]["mcnemar_p_holm"] == pytest.approx(4 * 0.02)
    assert figures["nf4"]["tasks_overall"]["mcnemar_p_holm"] == pytest.approx(2 * 0.02)
    row = flat(figures["nf4"])
    assert row["task/t/accuracy_ci95_low"] == 0.5
    assert row["task/overall/mcnemar_p_holm"] == pytest.approx(0.04)
    assert not [key for key in row if "subtasks" in key]
    assert flat({"tasks": None, "tasks_overall": None}) == {}
