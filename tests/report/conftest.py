"""Results made once a test run, and both reports made from them by the stage's own command line."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import synthetic
from report_runs import outputs, run_report


@dataclass(frozen=True)
class Reports:
    results: Path
    prompts: Path

    def model(self, name: str) -> Path:
        return self.results / name


@pytest.fixture(scope="session")
def reports(tmp_path_factory) -> Reports:
    """Three models × five methods, each with its report, and the report over all."""
    folder = tmp_path_factory.mktemp("report")
    results, prompts = folder / "results", synthetic.make_prompts(folder / "prompts.jsonl")
    for model in synthetic.MODELS:
        made = synthetic.make_model(results, model)
        answer = run_report(f"--model={made}", f"--prompts={prompts}", *outputs(made))
        assert answer.returncode == 0, answer.stderr
    models = [str(results / model) for model in synthetic.MODELS]
    answer = run_report("--models", *models, *outputs(results))
    assert answer.returncode == 0, answer.stderr
    return Reports(results, prompts)
