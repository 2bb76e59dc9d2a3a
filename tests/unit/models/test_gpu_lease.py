"""Jobs side by side on one host take different GPUs, and what one held is free when it ends, however it ends.

The GPUs are pretended (a count, in the place of torch), the processes and their locks are real.
"""

import os
import signal
import subprocess
import sys

import pytest
import torch

from quantharm.models import gpu_lease
from quantharm.models.gpu_lease import seen_gpus, take_gpus

JOB = """
import os, sys, types
cuda = types.SimpleNamespace(device_count=lambda: int(os.environ["PRETENDED"]), is_initialized=lambda: False)
sys.modules["torch"] = types.SimpleNamespace(cuda=cuda)  # whose import would take longer than all the rest
from quantharm.models.gpu_lease import take_gpus
take_gpus(int(sys.argv[1]))
print(os.environ.get("CUDA_VISIBLE_DEVICES", "all"), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def start(tmp_path, root):
    """start(gpus, …) → (process, what it sees); it ends when its standard input does."""
    jobs = []

    def job(gpus: int, pretended: int = 4, **environment: str) -> tuple[subprocess.Popen, str]:
        own = {"PYTHONPATH": str(root / "workflow"), "TMPDIR": str(tmp_path), "PRETENDED": str(pretended)}
        inherited = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
        command = [sys.executable, "-c", JOB, str(gpus)]
        process = subprocess.Popen(
            command, env=inherited | own | environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        jobs.append(process)
        return process, process.stdout.readline().strip()

    yield job
    for process in jobs:
        with process:  # closes its pipes and waits for it
            process.kill()


def test_jobs_side_by_side_take_different_gpus(start):
    assert [start(1)[1], start(2)[1], start(1)[1]] == ["0", "1,2", "3"]


@pytest.mark.parametrize("end", [signal.SIGKILL, None])
def test_a_gpu_is_free_again_when_its_job_ends(start, end):
    (first, seen), second = start(1), start(1)[1]
    assert (seen, second) == ("0", "1")
    if end:
        first.send_signal(end)
    else:
        first.stdin.close()
    first.wait()
    assert start(1)[1] == "0"


def test_more_jobs_than_gpus_share_them(start):
    assert sorted(start(1, 2)[1] for _ in range(2)) == ["0", "1"]
    assert start(1, 2)[1] in ("0", "1")
    assert start(1, 3)[1] == "2"  # the one that is free
    assert set(start(2, 3)[1].split(",")) < {"0", "1", "2"}


@pytest.mark.parametrize("pretended", [0, 1, 2])
def test_nothing_is_changed_where_there_are_no_more_than_asked(start, pretended):
    assert start(2, pretended)[1] == "all"
    assert start(2, pretended, CUDA_VISIBLE_DEVICES="5,7")[1] == "5,7"


def test_the_gpus_are_those_that_the_user_lets_it_see(start):
    stated = {"CUDA_VISIBLE_DEVICES": "5, GPU-7f,6"}
    assert [start(1, 3, **stated)[1] for _ in range(3)] == ["5", "GPU-7f", "6"]


def test_another_users_folder_is_not_used(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_lease.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    somebody = os.getuid() + 1
    (tmp_path / f"quantharm-gpus-{somebody}").mkdir()  # made by this user
    monkeypatch.setattr(gpu_lease.os, "getuid", lambda: somebody)
    take_gpus(1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] in ("0", "1")
    assert not list(tmp_path.rglob("*.lock"))


def test_a_link_in_a_locks_place_is_not_followed(monkeypatch, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("precious", encoding="utf-8")
    monkeypatch.setattr(gpu_lease.tempfile, "gettempdir", lambda: str(tmp_path))
    (gpu_lease.lock_folder() / "0.lock").symlink_to(precious)
    with pytest.raises(OSError, match="symbolic links"):
        gpu_lease.hold(gpu_lease.lock_folder() / "0.lock")
    assert precious.read_text(encoding="utf-8") == "precious"


def test_a_name_is_no_path(start, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "../../x,1")
    assert seen_gpus() == ["../../x", "1"]
    assert start(1, 2, CUDA_VISIBLE_DEVICES="../../x,1")[1] == "../../x"
    (lock,) = tmp_path.rglob("*.lock")
    assert lock.relative_to(tmp_path).parts == (f"quantharm-gpus-{os.getuid()}", ".._.._x.lock")
