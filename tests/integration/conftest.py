"""Stages run as a user runs them, one after the other, on the built-in model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "baseline": ("unquantized", {}),
    "nf4": ("bitsandbytes_4bit", {"quant_type": "nf4", "double_quantization": True}),
    "awq": (
        "awq",
        {
            "bits": 4,
            "group_size": 128,
            "zero_point": True,
            "calibration_samples": 4,
            "calibration_tokens": 256,
            "backend": None,
        },
    ),
}


def run_stage(name: str, **flags) -> str:
    """Standard output of `python -m quantharm.<name> --flag value …`."""
    command = [sys.executable, "-m", f"quantharm.{name}"]
    for flag, value in flags.items():
        command += [f"--{flag.replace('_', '-')}", str(value)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "workflow"), "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="session")
def cells(tmp_path_factory) -> Path:
    """A folder with quantized cells of the built-in model and their perplexities."""
    folder = tmp_path_factory.mktemp("cells")
    run_stage("fetch", model="reference", source="data/reference-model", output=folder / "source.json")
    for method, (quantizer, settings) in SETTINGS.items():
        cell = folder / method
        run_stage(
            "quantize",
            source=folder / "source.json",
            method=method,
            quantizer=quantizer,
            settings=json.dumps(settings),
            calibration="data/calibration.txt",
            checkpoint=cell / "checkpoint",
            output=cell / "quantization.json",
        )
        run_stage(
            "perplexity",
            quantization=cell / "quantization.json",
            text="data/evaluation.txt",
            windows=6,
            rows=cell / "perplexity.parquet",
            output=cell / "perplexity.json",
        )
    return folder
