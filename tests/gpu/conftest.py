"""Tests that need a GPU; without one they are skipped and say so.

PYTHONPATH=workflow python -m pytest tests/gpu
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import json
from pathlib import Path

import pytest
import torch

from quantharm import fetch, quantize, synthesize
from quantharm.models import devices, loading

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SHAPE = {  # as wide as a 7B model where kernels choose by width, but two layers deep
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "sliding_window": None,
    "tie_word_embeddings": False,
}
METHODS = {
    "baseline": ("unquantized", {}),
    "int8": ("bitsandbytes_int8", {"threshold": 6.0}),
    "int8-all": ("bitsandbytes_int8", {"threshold": 0.0}),
    "nf4": ("bitsandbytes_4bit", {"quant_type": "nf4", "double_quantization": True}),
    "awq": (
        "awq",
        {
            "bits": 4,
            "group_size": 128,
            "zero_point": True,
            "calibration_samples": 8,
            "calibration_tokens": 256,
            "backend": None,
        },
    ),
}


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in (i for i in items if i.path.is_relative_to(HERE)):  # the hook is given those of all folders
            item.add_marker(pytest.mark.skip(reason="needs a GPU that PyTorch sees; there is none here"))


@pytest.fixture(scope="session", autouse=True)
def at_the_root():
    before = Path.cwd()
    os.chdir(ROOT)
    if devices.choose_device("auto", 2) == "cuda":
        torch.cuda.init()  # or the first stage would leave this process one GPU for good
    torch.set_grad_enabled(False)
    loading.quiet()
    yield
    os.chdir(before)


def run_stage(module, *flags) -> None:
    """A stage's main() in this process, so that tests share one context on the GPU."""
    import sys

    before = sys.argv
    sys.argv = [module.__name__, *map(str, flags)]
    try:
        module.main()
    finally:
        sys.argv = before
        torch.set_grad_enabled(False)


@pytest.fixture(scope="module")
def shape() -> dict:
    """The config.json of the models; a module of tests may have its own."""
    return SHAPE


@pytest.fixture(scope="module")
def wide_source(shape, tmp_path_factory) -> dict:
    """source.json of random weights in that shape."""
    folder = tmp_path_factory.mktemp("wide")
    (folder / "shape.json").write_text(json.dumps(shape))
    flags = ["--architecture", folder / "shape.json", "--tokenizer", "data/reference-model"]
    run_stage(synthesize, *flags, "--output", folder / "synthetic")
    run_stage(fetch, "--model", "wide", "--source", folder / "synthetic", "--output", folder / "source.json")
    return json.loads((folder / "source.json").read_text()) | {"file": str(folder / "source.json")}


@pytest.fixture(scope="module")
def wide_cell(wide_source, tmp_path_factory):
    """method → its quantization record; each is made once."""
    made = {}

    def make(method: str) -> dict:
        if method not in made:
            quantizer, settings = METHODS[method]
            folder = tmp_path_factory.mktemp(method)
            flags = ["--source", wide_source["file"], "--method", method, "--quantizer", quantizer]
            flags += ["--settings", json.dumps(settings), "--calibration", "data/calibration.txt"]
            run_stage(quantize, *flags, "--checkpoint", folder / "checkpoint", "--output", folder / "q.json")
            made[method] = json.loads((folder / "q.json").read_text())
        return made[method]

    return make


@pytest.fixture
def load(wide_cell):
    """method → a freshly loaded model on the GPU, or spread over several; freed after the test."""
    loaded = []

    def load_one(method: str, gpus: int = 1, **settings):
        record = wide_cell(method) | {"gpus": gpus}
        loaded.append(loading.load_cell(record | {"settings": record["settings"] | settings}, "cuda"))
        return loaded[-1]

    yield load_one
    loaded.clear()
    torch.cuda.empty_cache()
