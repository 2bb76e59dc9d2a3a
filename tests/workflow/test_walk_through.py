"""docs/quantizers.md, followed to the letter: its module and its entry, in a copy of the finished project."""

import re

import pytest
from workflow_project import CHECKOUT

PAGE = CHECKOUT / "docs/quantizers.md"


def first_block(language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)[1]


@pytest.mark.slow
def test_a_quantizer_is_one_module_and_one_entry(finished):
    (finished / "workflow/quantharm/quantizers/rounded_rows.py").write_text(first_block("python"), encoding="utf-8")
    (finished / "mine.yaml").write_text(first_block("yaml"), encoding="utf-8")
    finished.run("results/reference/rounded-rows/checks.json", "--configfile", "config.yaml", "mine.yaml")
    checks = {check["name"]: check["status"] for check in finished.read("rounded-rows/checks.json")["checks"]}
    assert [checks[name] for name in ("method_is_real", "bits_per_weight", "kernel", "reload")] == ["pass"] * 4
    record = finished.read("rounded-rows/quantization.json")
    assert record["linear_classes"] == ["RoundedRows"]
    assert record["bits_per_weight"] == pytest.approx(8.1, abs=0.05)
