"""Which files a stage is made of, read off its imports."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from limits import HUNG_SECONDS

from quantharm.config import dependencies
from quantharm.config.dependencies import PACKAGE, module_files
from quantharm.config.methods import quantizer_names

STAGES = ["fetch", "quantize", "generation", "logits", "perplexity", "divergence", "checks", "summary", "report"]


def names(*modules: str) -> set[str]:
    return {str(path.relative_to(PACKAGE)) for path in module_files(*modules)}


def test_divergence_depends_on_what_it_computes_with():
    assert {
        "divergence.py",
        "common/statistics.py",
        "scoring/stored_logits.py",
        "scoring/forward.py",
        "models/loading.py",
        "common/errors.py",
    } <= names("divergence")
    assert not {"common/prompts.py", "speed/decoding.py", "quantizers/awq.py", "summary.py", "checks.py"} & names(
        "divergence"
    )


def test_perplexity_does_not_depend_on_prompts():
    files = names("perplexity")
    assert {"perplexity.py", "common/text.py", "common/statistics.py", "scoring/forward.py"} <= files
    assert {"scoring/stored_logits.py", "scoring/output_heads.py"} <= files  # with KL in the same pass
    assert not {"common/prompts.py", "divergence.py", "logits.py", "speed/decoding.py", "report.py"} & files


def test_imports_inside_functions_are_followed():
    # text is imported by forward.check_ids, loading by the quantizers' functions
    assert "common/text.py" in names("scoring.forward")
    assert {"quantizers/awq.py", "models/loading.py", "quantizers/quantized_layers.py"} <= names("quantizers.awq")
    assert {"quantizers/formats/awq.py", "quantizers/bitsandbytes_4bit.py"} <= names("quantizers.pretrained")


@pytest.mark.parametrize("quantizer", ["unquantized", "awq", "bitsandbytes_4bit", "bitsandbytes_int8"])
def test_a_quantizer_is_made_of_no_other_quantizers_module(quantizer):
    """So editing one method leaves the others' cells alone, the baseline's too. (`pretrained` loads any of them.)"""
    others = {f"quantizers/{name}.py" for name in quantizer_names()} - {f"quantizers/{quantizer}.py"}
    assert not others & names(f"quantizers.{quantizer}")


def test_imports_are_followed_through_other_modules():
    assert "common/stage.py" in names("checks")
    assert "common/statistics.py" in names("generation")  # by way of decoding


def test_several_modules_give_their_union_without_repeats():
    both = module_files("perplexity", "quantizers.awq")
    assert set(both) == set(module_files("perplexity")) | set(module_files("quantizers.awq"))
    assert both == sorted(set(both))


def test_an_unknown_module_is_an_error():
    with pytest.raises(ValueError, match="quantharm has no module nothing"):
        module_files("nothing")


def test_every_form_of_import_is_read(tmp_path, monkeypatch):
    package = tmp_path / "quantharm"
    (package / "sub").mkdir(parents=True)
    for name in ("__init__", "a", "b", "c", "d", "e", "unused", "sub/__init__", "sub/x"):
        (package / f"{name}.py").write_text("")
    (package / "a.py").write_text(
        "import os, quantharm.b\n"
        "from quantharm import c as see\n"
        "def late():\n"
        "    from quantharm.d import thing\n"
        "    from quantharm.sub import x\n"
        "if False:\n"
        "    import quantharm.e\n"
        "import quantharm_other, b_unused\n"
        "if TYPE_CHECKING:\n"
        "    from quantharm.unused import Kind\n"
    )
    monkeypatch.setattr(dependencies, "PACKAGE", package)
    dependencies.imported.cache_clear()
    try:
        files = {str(p.relative_to(package)) for p in module_files("a")}
    finally:
        dependencies.imported.cache_clear()
    assert files == {"__init__.py", "a.py", "b.py", "c.py", "d.py", "e.py", "sub/__init__.py", "sub/x.py"}


LOADED = """
import json, sys
loaded = {}
for stage in sys.argv[1:]:
    for name in [n for n in sys.modules if n.startswith("quantharm")]:
        del sys.modules[name]
    __import__(f"quantharm.{stage}")
    loaded[stage] = [m.__file__ for n, m in sys.modules.items() if n.startswith("quantharm")]
print(json.dumps(loaded))
"""


@pytest.mark.slow
def test_no_module_that_python_loads_for_a_stage_is_missing():
    """Against the interpreter itself: what importing a stage loads must be among its files."""
    run = subprocess.run(
        [sys.executable, "-c", LOADED, *STAGES],
        capture_output=True,
        text=True,
        cwd=PACKAGE.parent,
        timeout=HUNG_SECONDS,
    )
    assert run.returncode == 0, run.stderr
    for stage, files in json.loads(run.stdout).items():
        loaded = {Path(p).resolve() for p in files} - {PACKAGE / "__init__.py"}
        assert len(loaded) >= 3
        assert loaded <= {p.resolve() for p in module_files(stage)}, stage
