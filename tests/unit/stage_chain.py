"""The stages one after another on a tiny model, in this process, as their command lines call them."""

import importlib
import json
import sys
from pathlib import Path

import pytest
from record_types import RECORDS, faults

from quantharm.common.files import write_json
from quantharm.common.stage import run_stage
from quantharm.speed import device_meters

PROMPTS = [
    {"id": "one", "category": "First", "prompt": "Say something."},
    {"id": "two", "category": "Second", "prompt": "Say it again, Sam."},
]
TEXT = "The quick brown fox jumps over the lazy dog. " * 20
SETTINGS = {
    "unquantized": {},
    "endpoint": {},
    "bitsandbytes_4bit": {"quant_type": "nf4", "double_quantization": False},
    "bitsandbytes_int8": {"threshold": 6.0},
    "awq": {
        "bits": 4,
        "group_size": 32,
        "zero_point": True,
        "calibration_samples": 4,
        "calibration_tokens": 64,
        "backend": None,
    },
}
QUANTIZERS = {"baseline": "unquantized", "nf4": "bitsandbytes_4bit", "int8": "bitsandbytes_int8", "awq": "awq"}
QUANTIZERS |= {"served": "endpoint"}


class Chain:
    """Files of one model's cells in a folder, and the commands that make them."""

    def __init__(self, folder: Path, source: dict, monkeypatch):
        self.folder = folder
        self.monkeypatch = monkeypatch
        monkeypatch.setattr("quantharm.common.stage.leave", lambda: None)  # this process is the tests'
        monkeypatch.setitem(device_meters.COPY_BYTES, "cpu", 2**20)  # how fast this machine copies is no matter here
        self.source = folder / "source.json"
        write_json(self.source, source)
        self.text = folder / "text.txt"
        self.text.write_text(TEXT, encoding="utf-8")
        self.prompts = folder / "prompts.jsonl"
        self.prompts.write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS), encoding="utf-8")

    def __truediv__(self, path: str) -> Path:
        return self.folder / path

    def arguments(self, stage: str, method: str, **changed) -> list[str]:
        """The command line of a stage; `changed` sets or adds flags."""
        cell, baseline = self / method, self / "baseline"
        record, rows, output = cell / "quantization.json", cell / f"{stage}.parquet", cell / f"{stage}.json"
        flags = {
            "quantize": {
                "source": self.source,
                "method": method,
                "quantizer": QUANTIZERS[method],
                "settings": json.dumps(SETTINGS[QUANTIZERS[method]]),
                "dtype": "float32",
                "checkpoint": cell / "checkpoint",
                "output": record,
            },
            "generation": {
                "quantization": record,
                "prompts": self.prompts,
                "max_new_tokens": 6,
                "benchmark_prompt_tokens": 8,
                "benchmark_new_tokens": 3,
                "benchmark_repetitions": 2,
                "benchmark_seconds": 0,
                "rows": rows,
                "output": output,
            },
            "logits": {
                "quantization": record,
                "generation": baseline / "generation.parquet",
                "generation_record": baseline / "generation.json",
                "text": self.text,
                "window_tokens": 64,
                "trace": baseline / "trace.parquet",
                "output": baseline / "logits.parquet",
                "record": baseline / "logits.json",
            },
            "perplexity": {
                "quantization": record,
                "text": self.text,
                "window_tokens": 64,
                "rows": rows,
                "output": output,
            }
            | ({"logits": baseline / "logits.parquet"} if (baseline / "logits.parquet").exists() else {}),
            "divergence": {
                "quantization": record,
                "trace": baseline / "trace.parquet",
                "logits": baseline / "logits.parquet",
                "rows": rows,
                "output": output,
            }
            | ({"perplexity": cell / "perplexity.json"} if (cell / "perplexity.json").exists() else {}),
            "integrity": {"cell": cell, "floor": baseline / "divergence.json", "output": output}
            | ({} if method == "baseline" else {"baseline": baseline / "integrity.json"}),
            "checks": {
                "cell": cell,
                "baseline": baseline,
                "text": self.text,
                "prompts": self.prompts,
                "on_failure": "report",
                "output": output,
            },
        }[stage] | {"device": "cpu"}
        flags |= changed
        return [word for key, value in flags.items() for word in (f"--{key.replace('_', '-')}", str(value))]

    def call(self, stage: str, method: str = "baseline", **changed) -> None:
        self.run(stage, self.arguments(stage, method, **changed))
        record = "quantization" if stage == "quantize" else stage  # it holds the source record
        assert faults(self.read(f"{method}/{record}.json"), RECORDS[record], record) == []

    def run(self, stage: str, words: list[str]) -> None:
        """A stage with a command line of its own."""
        self.monkeypatch.setattr(sys, "argv", [stage, *words])
        run_stage(importlib.import_module(f"quantharm.{stage}").main)

    def fails(self, stage: str, method: str = "baseline", **changed) -> str:
        """The one sentence in which a stage ends; nothing new is left behind."""
        before = self.files()
        with pytest.raises(SystemExit) as ended:
            self.call(stage, method, **changed)
        message = ended.value.code  # a text: Python prints it and exits with 1
        assert isinstance(message, str), message
        assert message.startswith("error: ")
        assert "\n" not in message
        assert len(message) < 600 + 3 * len(str(self.folder)), message
        assert self.files() == before
        return message

    def files(self) -> dict[str, int]:
        contents = (p for p in self.folder.rglob("*") if p.is_file())
        return {str(p.relative_to(self.folder)): p.stat().st_mtime_ns for p in contents}

    def baseline(self) -> "Chain":
        """Everything of the baseline but its checks."""
        for stage in ("quantize", "generation", "logits", "perplexity", "divergence"):
            self.call(stage)
        return self

    def read(self, path: str) -> dict:
        return json.loads((self / path).read_text(encoding="utf-8"))
