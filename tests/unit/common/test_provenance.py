"""Where a store was filled, by all that decides how products are rounded."""

import importlib.metadata
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import quantharm.common.provenance
from quantharm import checks, integrity, perplexity, quantize
from quantharm.common.errors import UserError
from quantharm.common.provenance import (
    OF_PRODUCTS,
    device_name,
    filled_here,
    git_commit,
    how_computed,
    provenance,
    threads_of_process,
    version_of,
    versions,
)
from quantharm.common.warm_start import FORKED


@pytest.fixture
def store() -> dict:
    return {"device": device_name("cpu"), "versions": versions(), **how_computed("cpu", "bfloat16")}


def test_a_store_of_this_process_was_filled_here(store):
    assert filled_here(store, "cpu")


@pytest.mark.parametrize("key", ["device", "versions", "instruction_set", "onednn_instruction_set"])
def test_another_device_library_or_instruction_set_is_elsewhere(store, key):
    """One processor rounds in several ways: without its 16-bit instructions it is 2e-4 nats from itself."""
    assert not filled_here(store | {key: "another"}, "cpu")
    del store[key]
    assert not filled_here(store, "cpu")


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


def test_packages_of_one_method_are_recorded_apart(tmp_path, monkeypatch):
    """Only its jobs see them, and all cells of a run are to have the same versions of the others."""
    before = versions()
    assert "compressed-tensors" in before
    described = tmp_path / "auto_round-0.16.1.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: auto-round\nVersion: 0.16.1\n")
    monkeypatch.syspath_prepend(tmp_path)
    versions.cache_clear()
    assert versions() == before
    assert provenance("cpu")["versions_of_method"]["auto-round"] == "0.16.1"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """commit(*paths) in a checkout that the package lies in, in workflow/; gives the commit's name."""
    package = tmp_path / "outer" / "workflow" / "quantharm" / "common"
    package.mkdir(parents=True)
    (package / "provenance.py").write_text("")
    monkeypatch.setattr(quantharm.common.provenance, "__file__", str(package / "provenance.py"))
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)

    def git(*words: str) -> str:
        named = ["-c", "user.name=x", "-c", "user.email=x@example.org", *words]
        return subprocess.run(
            ["git", *named], cwd=tmp_path / "outer", check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "-q")
    return SimpleNamespace(folder=tmp_path / "outer", package=package, git=git)


def commit_now() -> str | None:
    git_commit.cache_clear()
    return git_commit()


@pytest.fixture(autouse=True)
def commit_asked_anew():
    yield
    git_commit.cache_clear()


def test_the_commit_is_of_a_checkout_that_tracks_the_package(checkout):
    """Unpacked inside another project's checkout, the package is at no commit of that project."""
    (checkout.folder / "theirs.txt").write_text("x")
    checkout.git("add", "theirs.txt")
    checkout.git("commit", "-qm", "theirs")
    assert commit_now() is None
    checkout.git("add", "workflow")
    assert commit_now().endswith("-dirty")  # staged
    checkout.git("commit", "-qm", "ours")
    assert commit_now() == checkout.git("rev-parse", "--short=12", "HEAD")


@pytest.mark.parametrize("ignored", [False, True])
def test_a_module_that_git_does_not_track_is_a_change(checkout, ignored):
    checkout.git("add", "workflow")
    checkout.git("commit", "-qm", "ours")
    (checkout.folder / ".git" / "info" / "exclude").write_text("*.py\n" if ignored else "")
    (checkout.folder / "results.txt").write_text("no module")
    assert not commit_now().endswith("-dirty")
    (checkout.package / "mine.py").write_text("")
    assert commit_now().endswith("-dirty")


def test_a_git_hook_and_a_worktree_name_the_package_s_own_commit(checkout, monkeypatch, tmp_path):
    checkout.git("add", "workflow")
    checkout.git("commit", "-qm", "ours")
    first = commit_now()
    checkout.git("worktree", "add", "-q", str(tmp_path / "second"), "-b", "second")
    subprocess.run(["git", "init", "-q", str(tmp_path / "other")], check=True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))  # as a hook of that repository has it
    assert commit_now() == first
    monkeypatch.delenv("GIT_DIR")
    (checkout.package / "provenance.py").write_text("changed")
    checkout.git("commit", "-qam", "ours, later")
    there = tmp_path / "second" / "workflow" / "quantharm" / "common" / "provenance.py"
    assert commit_now() != first
    monkeypatch.setattr(quantharm.common.provenance, "__file__", str(there))
    assert commit_now() == first


def test_a_commit_during_a_stage_is_not_the_stage_s(checkout):
    """Its modules were read when it began."""
    checkout.git("add", "workflow")
    checkout.git("commit", "-qm", "ours")
    began = commit_now()
    checkout.git("commit", "-q", "--allow-empty", "-m", "later")
    assert provenance("cpu")["git_commit"] == began != commit_now()


@pytest.mark.parametrize(
    ("stage", "flags"),
    [
        (quantize, "--source no --method x --quantizer x --checkpoint no --output no"),
        (perplexity, "--quantization no --text {text} --rows no --output no"),
        (checks, "--cell no --baseline no --text no --prompts no --output no"),
        (integrity, "--cell no --baseline no"),
    ],
)
def test_a_stage_asks_for_the_commit_before_it_reads_anything(stage, flags, monkeypatch, root, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["stage", *flags.format(text=root / "data" / "evaluation.txt").split()])
    git_commit.cache_clear()
    with pytest.raises(UserError):
        stage.main()
    assert git_commit.cache_info().currsize == 1


def test_a_warm_start_is_recorded(monkeypatch):
    """The peak of its memory lacks pages of libraries that it shares with the server."""
    monkeypatch.delenv(FORKED, raising=False)
    assert "warm_start" not in provenance("cpu")
    monkeypatch.setenv(FORKED, "1")
    assert provenance("cpu")["warm_start"] is True


def test_threads_are_those_that_pytorch_uses(monkeypatch):
    """OMP_NUM_THREADS may hold a number for each level, or nothing, and a process may be bound to some of the cores."""
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    torch.set_num_threads(before + 2)
    assert threads_of_process() == before + 2
    torch.set_num_threads(before)
    monkeypatch.delitem(sys.modules, "torch")
    for stated, threads in (("7", 7), ("3,2", 3), ("", len(os.sched_getaffinity(0)))):
        monkeypatch.setenv("OMP_NUM_THREADS", stated)
        assert threads_of_process() == threads


def test_variables_that_decide_how_libraries_multiply_are_recorded(monkeypatch):
    """MKL_CBWR=COMPATIBLE gives other last digits, and no instruction set that is recorded shows it."""
    for name in OF_PRODUCTS:
        monkeypatch.delenv(name, raising=False)
    assert "environment" not in provenance("cpu")
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    assert provenance("cpu")["environment"] == {"MKL_CBWR": "COMPATIBLE"}
