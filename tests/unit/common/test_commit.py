"""The commit that records name: of this package's own checkout, as the stage began."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

import quantharm.common.commit
from quantharm import checks, integrity, perplexity, quantize
from quantharm.common.commit import git_commit
from quantharm.common.errors import UserError
from quantharm.common.provenance import provenance


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """commit(*paths) in a checkout that the package lies in, in workflow/; gives the commit's name."""
    package = tmp_path / "outer" / "workflow" / "quantharm" / "common"
    package.mkdir(parents=True)
    (package / "commit.py").write_text("")
    monkeypatch.setattr(quantharm.common.commit, "__file__", str(package / "commit.py"))
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
    (checkout.package / "commit.py").write_text("changed")
    checkout.git("commit", "-qam", "ours, later")
    there = tmp_path / "second" / "workflow" / "quantharm" / "common" / "commit.py"
    assert commit_now() != first
    monkeypatch.setattr(quantharm.common.commit, "__file__", str(there))
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
