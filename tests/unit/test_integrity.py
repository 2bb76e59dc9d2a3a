"""The command and the stage `integrity`: each thing that is wrong with a checkpoint is found, and nothing else."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pandas
import pyarrow.parquet
import pytest
import torch
from gguf_writer import write
from safetensors.torch import load_file, save_file

from quantharm import integrity
from quantharm.common.constants import SELF_DIVERGENCE_LIMIT
from quantharm.common.errors import UserError
from quantharm.common.files import sha256_of_file, write_json, write_parquet
from quantharm.forensics import manifest, reference_check
from quantharm.forensics.detection import checkpoints
from quantharm.forensics.detection.lattice_fit import CODEBOOKS
from quantharm.models import loading
from quantharm.models.loading import load_checkpoint, set_compute_dtype
from quantharm.scoring import hardware_floor
from quantharm.scoring.head_file import write_head
from quantharm.scoring.store_filling import form_of_store, head_to_keep, write_store
from quantharm.scoring.store_metadata import store_metadata_of


def arguments(folder=None, **given):
    names = ["signature", "public_key", "store", "store_signature", "floor", "cell", "baseline"]
    return SimpleNamespace(**(dict.fromkeys(names) | {"folder": folder, "device": "cpu", "gpus": 1} | given))


@pytest.fixture
def handed(tiny, save_checkpoint, tmp_path):
    """(folder, source record) of a model never quantized, whose matrices are wide enough to be judged."""
    folder = tmp_path / "tiny"
    model = tiny("llama", torch.bfloat16, hidden_size=128, intermediate_size=256, max_position_embeddings=256)
    return folder, save_checkpoint(model, folder)


def dequantize_as_nf4(folder):
    """What somebody would do who quantized it and hands it on as the original."""
    levels = torch.tensor(CODEBOOKS["NF4"])
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        for name, weight in tensors.items():
            if "proj" in name:
                groups = weight.float().reshape(-1, 64)
                scale = groups.abs().amax(1, keepdim=True)
                codes = (groups.div(scale).unsqueeze(-1) - levels).abs().argmin(-1)
                tensors[name] = (levels[codes] * scale).reshape(weight.shape).to(weight.dtype)
        save_file(tensors, path, metadata={"format": "pt"})


def test_without_a_signature_nothing_is_verified_and_nothing_found(handed):
    record = integrity.judge_folder(arguments(handed[0]))
    assert record["verified"] is None
    assert record["scan"]["verdict"] == "no trace"
    assert integrity.findings_of(record) == []


def test_a_dequantized_checkpoint_is_found(handed):
    dequantize_as_nf4(handed[0])
    record = integrity.judge_folder(arguments(handed[0]))
    assert record["verified"] is False
    scan = record["scan"]
    assert (scan["verdict"], scan["method"], scan["bits"], scan["group_size"]) == ("dequantized", "NF4", 4, 64)
    assert all(("proj" in m["name"]) == (m["verdict"] == "dequantized") for m in scan["matrices"])


def test_signed_files(handed, tmp_path):
    private, public, signature = (tmp_path / name for name in ("k.pem", "k.pub", "tiny.sig"))
    manifest.make_keys(private, public)
    manifest.sign(handed[0], private, signature)
    given = arguments(handed[0], signature=signature, public_key=public)
    assert integrity.judge_folder(given)["verified"] is True
    dequantize_as_nf4(handed[0])
    (handed[0] / "more.json").write_text("{}")
    record = integrity.judge_folder(given)
    assert record["verified"] is False
    assert record["manifest"]["wrong"] == ["model.safetensors"]
    assert record["manifest"]["extra"] == ["more.json"]
    assert len(integrity.findings_of(record)) == 2  # its files and its weights


@pytest.fixture(params=["hidden_states"])
def stored(request, handed, tmp_path):
    """The log-prob store of the tiny model among other results of a baseline, as the workflow would leave them."""
    folder, source = handed
    model = load_checkpoint(folder, source, "bfloat16", "cpu", 1)
    set_compute_dtype(model, "unquantized", "bfloat16", "cpu")  # as the stage logits would
    ids = torch.randint(2, 250, (4, 40), generator=torch.Generator().manual_seed(0)).tolist()
    trace = pandas.DataFrame(
        {"prompt_id": [f"p{i}" for i in range(4)], "category": "c", "token_ids": ids, "first_target": 20}
    )
    metadata = store_metadata_of({"model": "tiny", "source": source, "dtype": "bfloat16"}, trace, "cpu", "test")
    store = tmp_path / "baseline"
    store.mkdir()
    head, reason = head_to_keep(model, request.param, "bfloat16")
    write_store(model, trace, store / "logits.parquet", metadata | form_of_store(model, head, reason))
    write_head(store / "output_head.safetensors", head, reason)
    write_parquet(store / "trace.parquet", trace)
    write_json(store / "divergence.json", {"kl_nats": {"mean": 3e-7}})
    write_json(store / "checks.json", {})
    return store


@pytest.mark.parametrize("stored", ["hidden_states", "log_probabilities"], indirect=True)
def test_behaviour_against_a_store(handed, stored):
    given = arguments(handed[0], store=stored)
    record = integrity.judge_folder(given)
    behaviour = record["behaviour"]
    assert behaviour["same_as_original"]
    assert abs(behaviour["kl_nats_mean"]) < 1e-5
    assert behaviour["noise_floor_kl_nats"] == 3e-7
    low, high = behaviour["kl_nats_ci95"]
    assert low <= behaviour["kl_nats_mean"] <= high
    assert record["verified"] is True
    for path in handed[0].glob("*.safetensors"):
        tensors = {n: t * 1.2 if "down_proj" in n else t for n, t in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})
    record = integrity.judge_folder(given)
    assert record["scan"]["verdict"] == "no trace"
    assert record["behaviour"]["kl_nats_mean"] > 1e-4
    assert [f.split(":")[0] for f in integrity.findings_of(record)] == ["behaviour"]
    (stored / "divergence.json").unlink()
    assert integrity.judge_folder(given)["behaviour"]["noise_floor_kl_nats"] is None


def test_a_gguf_file_is_judged_as_well(handed, stored, tiny, tmp_path):
    """As it is handed over: one file, without a config.json; told from the original by its behaviour."""
    model = tiny("llama", torch.bfloat16, hidden_size=128, intermediate_size=256, max_position_embeddings=256)
    write(model, tmp_path / "theirs.gguf", {"blk": "Q4_0"})
    record = integrity.judge_folder(arguments(tmp_path / "theirs.gguf", store=stored))
    assert record["scan"]["verdict"] == "packed"
    assert record["behaviour"]["same_as_original"] is False
    assert record["verified"] is False
    write(model, tmp_path / "same.gguf", {})  # in float32, all of it
    record = integrity.judge_folder(arguments(tmp_path / "same.gguf", store=stored))
    assert record["behaviour"]["same_as_original"]
    assert record["scan"]["verdict"] == "no trace"
    assert record["scan"]["matrices_scanned"] == 16  # embeddings and head too
    with pytest.raises(UserError, match="no-such"):
        integrity.judge_folder(arguments(tmp_path / "no-such.gguf"))


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


STORE_FAULTS = {
    "logits.parquet": flip_a_bit,
    "output_head.safetensors": flip_a_bit,  # other logits of the same states
    "trace.parquet": flip_a_bit,
    "divergence.json": lambda path: write_json(path, {"kl_nats": {"mean": 1.0}}),  # so wide a floor hides anything
}


@pytest.mark.parametrize("name", STORE_FAULTS)
def test_a_store_that_is_not_the_signed_one_is_refused(handed, stored, tmp_path, name):
    private, public, signature = (tmp_path / n for n in ("k.pem", "k.pub", "store.sig"))
    manifest.make_keys(private, public)
    manifest.sign(stored, private, signature, only=list(STORE_FAULTS))
    given = arguments(handed[0], store=stored, store_signature=signature, public_key=public)
    record = integrity.judge_folder(given)
    assert record["verified"] is True
    assert record["store_manifest"]["files"] == 4
    (stored / "checks.json").write_text("another run's")  # is no part of the store
    assert integrity.judge_folder(given)["verified"] is True
    STORE_FAULTS[name](stored / name)
    with pytest.raises(UserError, match=f"is not the signed one: wrong: {name}"):
        integrity.judge_folder(given)


def test_a_signature_of_other_files_does_not_vouch_for_a_store(handed, stored, tmp_path):
    private, public, signature = (tmp_path / n for n in ("k.pem", "k.pub", "store.sig"))
    manifest.make_keys(private, public)
    manifest.sign(stored, private, signature, only=["checks.json"])
    given = arguments(handed[0], store=stored, store_signature=signature, public_key=public)
    with pytest.raises(UserError, match=r"extra: divergence\.json, logits\.parquet, output_head\.safetensors, trace"):
        integrity.judge_folder(given)


def test_a_store_without_its_head_says_nothing(handed, stored):
    """Unsigned, its metadata in the store still tell the head's hash; without the file nothing can be scored."""
    head = stored / "output_head.safetensors"
    whole = head.read_bytes()
    flip_a_bit(head)
    with pytest.raises(UserError, match="is not the output head that its store was filled with"):
        integrity.judge_folder(arguments(handed[0], store=stored))
    head.unlink()
    with pytest.raises(UserError, match="copy the file with the store"):
        integrity.judge_folder(arguments(handed[0], store=stored))
    head.write_bytes(whole)
    assert integrity.judge_folder(arguments(handed[0], store=stored))["verified"] is True


MEASURED = {"dtype": "bfloat16", "hardware_floor": {"rounding_kl_nats": 2.5e-4, "eight_bit_kl_nats": 8.6e-4}}
UNMEASURED = {"dtype": "bfloat16"}
NARROW = {"dtype": "bfloat16", "hardware_floor": {"rounding_kl_nats": 2.5e-4, "eight_bit_kl_nats": 3e-4}}


@pytest.mark.parametrize(
    ("store", "mean", "ci95", "same_machine", "same"),
    [
        (MEASURED, 3e-7, [2e-7, 4e-7], True, True),
        (MEASURED, 2.3e-4, [2e-4, 2.6e-4], False, True),  # as other kernels gave for the built-in model
        (MEASURED, 3.4e-4, [3e-4, 3.9e-4], False, True),
        (MEASURED, 2.3e-4, [2e-4, 2.6e-4], True, None),  # this machine gave 0 when it filled the store
        (MEASURED, 8.6e-4, [8e-4, 9e-4], False, None),  # weights of 8 bits; four times the rounding explains it
        (MEASURED, 1.2e-3, [9e-4, 1.5e-3], False, None),  # the interval reaches down to what hardware may change
        (MEASURED, 1.2e-3, [1.1e-3, 1.5e-3], False, False),
        (MEASURED, 0.1, None, True, False),
        (NARROW, 2.3e-4, [2e-4, 2.6e-4], False, None),  # 8 bits cost no more
        (UNMEASURED, 2.3e-4, [2e-4, 2.6e-4], False, None),
        (UNMEASURED, 5e-6, None, False, True),
        (UNMEASURED, 1e-5, None, False, True),  # at a limit it is not beyond it
        (UNMEASURED, 1e-2, None, False, None),
        (UNMEASURED, 0.1, None, False, False),
    ],
)
def test_a_model_is_the_same_or_another_or_cannot_be_told(store, mean, ci95, same_machine, same):
    divergence = {"kl_nats": {"mean": mean, "ci95": ci95}, "top1_agreement": 1.0}
    record = reference_check.judge(divergence, 3e-7, store, same_machine)
    assert record["same_as_original"] is same
    assert record["verdict"] == {True: "same", False: "different", None: "cannot be told"}[same]
    assert f"{record['limit_kl_nats']:.2g}" in record["explanation"]


def test_limits_by_hand():
    """Twice and four times the rounding; half of what 8 bits cost; ten times the store's own noise at least."""
    assert reference_check.limits_of(MEASURED, 3e-7, False) == (pytest.approx(4.3e-4), pytest.approx(1e-3))
    assert reference_check.limits_of(MEASURED, 3e-7, True) == (1e-5, pytest.approx(1e-3))
    for mildest in (5e-3, None):  # far from what rounding explains, or not measured
        far = {"dtype": "bfloat16", "hardware_floor": {"rounding_kl_nats": 2.5e-4, "eight_bit_kl_nats": mildest}}
        assert reference_check.limits_of(far, 3e-7, False) == (pytest.approx(5e-4), pytest.approx(1e-3))
    assert reference_check.limits_of(MEASURED, 2e-4, True) == (pytest.approx(2e-3), pytest.approx(2e-3))
    exact = {"dtype": "float32", "hardware_floor": {"rounding_kl_nats": 0.0, "eight_bit_kl_nats": 4e-4}}
    assert reference_check.limits_of(exact, 3e-7, False) == (1e-5, 1e-5)


@pytest.mark.parametrize(
    ("filled", "fast"), [("float32", True), ("bfloat16", False), (None, False)], ids=["float32", "bfloat16", "unsaid"]
)
def test_a_checkpoint_is_scored_as_the_store_was_filled(handed, stored, monkeypatch, filled, fast):
    """Whatever this processor multiplies fast; a store that does not say it was filled in its dtype."""
    metadata = json.loads(pyarrow.parquet.read_schema(stored / "logits.parquet").metadata[b"quantharm"])
    metadata.pop("compute_dtype", None)
    told = metadata | ({"compute_dtype": filled} if filled else {})

    def seen(model, *_):
        raise UserError(str(model.get_input_embeddings().weight.dtype))

    monkeypatch.setattr("quantharm.scoring.stored_logits.store_metadata", lambda path: told)
    monkeypatch.setattr("quantharm.scoring.kl_divergence.score_store", seen)
    monkeypatch.setattr("quantharm.models.compute.multiplies_fast", lambda dtype: fast)
    with pytest.raises(UserError, match=f"^torch.{filled or 'bfloat16'}$"):
        reference_check.score_folder(handed[0], stored, "cpu", 1)


def test_the_untouched_original_is_not_accused_by_other_kernels(handed, stored, monkeypatch):
    """Another attention implementation adds in another order, as another processor does."""
    folder, source = handed
    model = load_checkpoint(folder, source, "bfloat16", "cpu", 1)
    trace = pandas.read_parquet(stored / "trace.parquet")
    floor = hardware_floor.measure_floor(model, trace, "text")
    metadata = json.loads(pyarrow.parquet.read_schema(stored / "logits.parquet").metadata[b"quantharm"])
    other = metadata | {"hardware_floor": floor, "device": "CPU: another", "compute_dtype": "bfloat16"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quantharm.scoring.stored_logits.store_metadata", lambda path: other)
        patch.setattr(loading, "load_checkpoint", lambda *given: load_checkpoint(*given, attn_implementation="eager"))
        behaviour = reference_check.score_folder(folder, stored, "cpu", 1)
    assert behaviour["kl_nats_mean"] > SELF_DIVERGENCE_LIMIT  # or nothing is shown
    assert behaviour["verdict"] == "same", behaviour
    assert "CPU: another" in behaviour["explanation"]


@pytest.mark.parametrize(("mean", "code"), [(2e-4, 0), (8e-4, 1), (2e-3, 3)])
def test_exit_code_by_behaviour(handed, stored, monkeypatch, capsys, mean, code):
    divergence = {"kl_nats": {"mean": mean, "ci95": None}, "top1_agreement": 1.0}
    judged = reference_check.judge(divergence, 3e-7, MEASURED, False)
    monkeypatch.setattr(reference_check, "score_folder", lambda *_: judged)
    monkeypatch.setattr(integrity, "scan_folder", lambda _: {"verdict": "no trace", "findings": [], "matrices": []} | {
        "explanation": "no trace of quantization"})  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["integrity", str(handed[0]), "--store", str(stored), "--device", "cpu"])
    with contextlib.ExitStack() as stack:
        ended = stack.enter_context(pytest.raises(SystemExit)) if code else None
        integrity.main()
    assert (ended.value.code if code else 0) == code
    assert ("cannot be told" in capsys.readouterr().out) == (code == 1)


def test_packed_checkpoints_are_named_and_what_is_left_in_floats_is_scanned(nf4_cell):
    scan = checkpoints.scan_folder(nf4_cell.checkpoint)
    assert (scan["verdict"], scan["matrices_packed"], scan["matrices_scanned"]) == ("packed", 56, 2)
    assert "56 of 58 matrices are openly stored as quantized (bitsandbytes)" in scan["explanation"]


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("nf4_cell", ("NF4", 64)),
        ("int8_cell", ("8-bit integer", "whole")),
        ("awq_cell", ("4-bit integer", 64)),
    ],
)
def test_what_a_quantized_cell_stands_for_would_be_noticed(cell, expected, request):
    cell = request.getfixturevalue(cell)
    scan = checkpoints.scan_dequantized(cell.record, "cpu")
    assert (scan["verdict"], scan["method"], scan["group_size"]) == ("dequantized", *expected)
    assert scan["matrices_with_trace"] == scan["matrices_scanned"]
    assert scan["matrices_of_checkpoint"] == len(cell.matrices)


@pytest.fixture
def cell_of(tmp_path):
    """cell_of(record): arguments of the stage for a cell with that quantization record."""

    def make(record, **given):
        folder = tmp_path / f"{record['method']}-cell"
        folder.mkdir(exist_ok=True)
        divergence = {"kl_nats": {"mean": 1e-7, "ci95": [0.0, 2e-7]}, "top1_agreement": 1.0, "store": MEASURED}
        write_json(folder / "quantization.json", record)
        write_json(folder / "divergence.json", divergence)
        return arguments(cell=folder, floor=folder / "divergence.json", **given)

    return make


def baseline_record(handed):
    folder, source = handed
    record = {"model": "tiny", "method": "baseline", "quantizer": "unquantized", "checkpoint": str(folder), "gpus": 1}
    return record | {"source": source, "weight_files": source["weight_files"], "dtype": "bfloat16"}


def test_a_baseline_that_is_one(handed, cell_of):
    record = integrity.judge_cell(cell_of(baseline_record(handed)))
    assert record["scan"]["matrices_scanned"] > 0
    assert record["verified"] is True
    assert record["if_dequantized"] is None
    json.dumps(record, allow_nan=False)


def test_a_baseline_that_was_quantized_and_dequantized(handed, cell_of):
    dequantize_as_nf4(handed[0])
    given = baseline_record(handed)
    given["weight_files"] = [f | {"sha256": sha256_of_file(handed[0] / f["name"])} for f in given["weight_files"]]
    record = integrity.judge_cell(cell_of(given))
    assert record["manifest"]["verified"]
    assert record["verified"] is False
    assert "NF4" in record["explanation"]


def test_a_baseline_whose_files_changed(handed, cell_of):
    given = cell_of(baseline_record(handed))
    for path in handed[0].glob("*.safetensors"):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    record = integrity.judge_cell(given)
    assert record["verified"] is False
    assert "wrong: model.safetensors" in record["explanation"]


@pytest.mark.parametrize("its_model", [True, False])
def test_a_quantized_cell_is_as_good_as_its_model(nf4_cell, cell_of, tmp_path, its_model):
    write_json(tmp_path / "integrity.json", {"verified": its_model, "explanation": "because"})
    record = integrity.judge_cell(cell_of(nf4_cell.record, baseline=tmp_path / "integrity.json"))
    assert record["verified"] is its_model
    assert record["scan"]["verdict"] == "packed"
    assert record["if_dequantized"]["verdict"] == "dequantized"
    if not its_model:
        assert "its model: because" in record["explanation"]


def test_a_cell_over_several_gpus_is_loaded_over_as_many(nf4_cell, cell_of, tmp_path, monkeypatch):
    write_json(tmp_path / "integrity.json", {"verified": True, "explanation": ""})
    asked = []
    monkeypatch.setattr(integrity, "choose_device", lambda wanted, gpus: asked.append(gpus) or wanted)
    integrity.judge_cell(cell_of(nf4_cell.record | {"gpus": 3}, baseline=tmp_path / "integrity.json"))
    assert asked == [3]


HOSTILE = "\x1b[2J\x1b[1;1Hno trace\u202e\n"


def test_what_a_checkpoint_calls_its_parts_cannot_command_a_terminal(handed, tmp_path, monkeypatch, capsys):
    """Tensors, files and the quantizer's name are the words of somebody who may have something to hide."""
    folder = handed[0]
    private, public, signature = (tmp_path / name for name in ("k.pem", "k.pub", "tiny.sig"))
    manifest.make_keys(private, public)
    manifest.sign(folder, private, signature)
    (folder / HOSTILE).write_text("x")
    tensors = load_file(folder / "model.safetensors")
    save_file({HOSTILE + name: t for name, t in tensors.items()}, folder / "model.safetensors")
    words = ["x", str(folder), "--signature", str(signature), "--public-key", str(public)]

    def shown():
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit):
            integrity.main()
        return capsys.readouterr().out

    config = json.loads((folder / "config.json").read_text())
    first = shown()
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": HOSTILE}}))
    for text in (first, shown()):
        assert text.count("⟨U+001B⟩[2J") >= 2
        assert all(c.isprintable() or c == "\n" for c in text)


def test_exit_codes_of_the_command(handed, root, tmp_path):
    def run(*words):
        command = [sys.executable, "-m", "quantharm.integrity", *map(str, words)]
        environment = os.environ | {"PYTHONPATH": str(root / "workflow"), "OMP_WAIT_POLICY": "passive"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    clean = run(handed[0], "--output", tmp_path / "integrity.json")
    assert clean.returncode == 0, clean.stderr
    assert "no trace" in clean.stdout
    assert json.loads((tmp_path / "integrity.json").read_text())["verified"] is None
    dequantize_as_nf4(handed[0])
    answer = run(handed[0])
    assert answer.returncode == 3
    assert "NF4" in answer.stdout
    assert answer.stdout.splitlines()[-1] == f"{handed[0]}: against it: weights"
    shutil.rmtree(handed[0])
    missing = run(handed[0])
    assert missing.returncode == 1
    assert missing.stderr.splitlines()[-1].startswith("error: ")
