"""Checkpoints by their own libraries, read as `pretrained`: what is asked of each."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from quantharm import fetch
from quantharm.forensics.checks.kernel import check_kernel
from quantharm.forensics.checks.weights import check_bits_per_weight, check_method_is_real, check_stored_weights

IDS = [0, 5, 77, 200, 31, 8, 9, 250, 3]


@pytest.fixture(scope="session")
def foreign(make_cell):
    """foreign(folder, dtype, source): the cell of a third party's checkpoint, as a method of its model.

    source: the record of that model, if it matters.
    """

    def read(folder: Path, dtype: str = "float32", source: dict | None = None) -> SimpleNamespace:
        resolved = fetch.describe("theirs", str(folder), Path(folder), None, False, False, quantized=True)
        return make_cell(source or resolved, "pretrained", {"resolved": resolved, "backend": None}, dtype)

    return read


@pytest.fixture(scope="session")
def bare_logits():
    """bare_logits(folder, dtype, **settings): what a plain loop over transformers gives, [T, vocabulary]."""

    def run(folder: Path, dtype: str = "float32", **settings) -> torch.Tensor:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), device_map={"": "cpu"}, **settings
        )
        return model(torch.tensor([IDS])).logits[0]

    return run


@pytest.fixture(scope="session")
def passes():
    """Raises unless a cell passes the checks that concern its format; returns what `kernel` measured."""

    def check(cell: SimpleNamespace, measured_bits: float) -> float:
        kernel = check_kernel(cell.model, cell.matrices, IDS)
        real = check_method_is_real(cell.record, cell.matrices, cell.model)
        bits = check_bits_per_weight(cell.record)
        assert [c["status"] for c in (kernel, real, bits)] == ["pass"] * 3, (kernel, real, bits)
        assert cell.record["bits_per_weight"] == pytest.approx(measured_bits, rel=1e-3)
        return kernel["value"]

    return check


@pytest.fixture(scope="session")
def logits_of():
    return lambda cell: cell.model(torch.tensor([IDS])).logits[0]


@pytest.fixture(scope="session", autouse=True)
def quiet_libraries():
    os.environ["GPTQMODEL_CPU_WORKERS"] = "2"  # its pool of threads wants two
    os.environ.setdefault("LOGURU_LEVEL", "ERROR")


@pytest.fixture(scope="session")
def original(tiny, save_checkpoint, tmp_path_factory) -> Path:
    """The folder of the model that the checkpoints here were made from."""
    folder = tmp_path_factory.mktemp("original")
    save_checkpoint(tiny("llama", torch.bfloat16), folder)
    return folder


@pytest.fixture(scope="session")
def with_wrong_scale(original):
    """With one number of the file changed, times 8 if nothing else is said, what the check says; before, it passes.

    source: the folder of the original's weights, if it is not `original`.
    """

    def judge(
        cell: SimpleNamespace, tensor: str, place, change=lambda number: 8 * number, source: Path = original
    ) -> dict:
        sound = check_stored_weights(cell.model, cell.matrices, source, cell.record)
        assert sound["status"] == "pass", sound
        path = Path(cell.record["checkpoint"]) / "model.safetensors"
        before = path.read_bytes()
        tensors = load_file(path)
        tensors[tensor][place] = change(tensors[tensor][place].float()).to(tensors[tensor].dtype)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        save_file(tensors, path, metadata=metadata)
        try:
            return check_stored_weights(cell.model, cell.matrices, source, cell.record)
        finally:
            path.write_bytes(before)

    return judge
