"""The versions that records name: of the modules that run."""

import importlib.metadata
import sys
from types import SimpleNamespace

from quantharm.common.versions import version_of


def test_the_version_is_of_the_module_that_runs(tmp_path, monkeypatch):
    """Its folder may stand in front of the installed one's, without a word on its version."""
    installed = importlib.metadata.version("tqdm")
    for running, recorded in (("0.1", "0.1"), (installed, installed), (f"{installed}+cpu", installed)):
        monkeypatch.setitem(sys.modules, "tqdm", SimpleNamespace(__version__=running))
        assert version_of("tqdm") == recorded
    monkeypatch.delitem(sys.modules, "tqdm")
    assert version_of("tqdm") == installed
    monkeypatch.syspath_prepend(tmp_path)
    for written in ("__version__ = '9.8'", 'import os\n__version__: str = version = "9.8"', "version = '9.8'"):
        (tmp_path / "tqdm").mkdir(exist_ok=True)
        (tmp_path / "tqdm" / "__init__.py").write_text("raise ImportError")
        (tmp_path / "tqdm" / "_version.py").write_text(written)
        assert version_of("tqdm") == "9.8"  # in a cell that does not import it
    assert "tqdm" not in sys.modules
    monkeypatch.setitem(sys.modules, "awq", SimpleNamespace(__version__="7"))
    assert version_of("autoawq") == "7"
    assert version_of("no-package") is None
