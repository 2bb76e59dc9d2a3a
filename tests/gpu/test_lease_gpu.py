"""On a host of several GPUs two processes at once see one each, and not the same."""

import os
import subprocess
import sys

import pytest
import torch

JOB = """
import sys, torch
from quantharm.models import choose_device
choose_device("cuda", 1)
torch.zeros(1, device="cuda")
print(torch.cuda.device_count(), torch.cuda.get_device_properties(0).uuid, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_jobs_compute_on_two_gpus(tmp_path):
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", JOB], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    counts, uuids = zip(*(job.stdout.readline().split() for job in started), strict=True)
    for job in started:
        job.communicate()
    assert counts == ("1", "1")
    assert len(set(uuids)) == 2
