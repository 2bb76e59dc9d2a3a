"""What the system tells of this process: how long it waited for processors that others used."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from quantharm.speed import device_meters
from quantharm.speed.device_meters import ProcessorWait

SHARED = """
import os, time
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
from quantharm.speed.device_meters import ProcessorWait
def compute(seconds):
    begin = time.process_time()
    while time.process_time() < begin + seconds:
        pass
other = os.fork()
if other == 0:
    compute(60)
wait = ProcessorWait()
compute(0.5)
print(wait.share())
os.kill(other, 9)
"""


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="this system does not count it")
def test_two_programs_on_one_processor_wait_for_each_other():
    package = str(Path(device_meters.__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": package}
    told = subprocess.run([sys.executable, "-c", SHARED], env=environment, capture_output=True, text=True, check=True)
    assert 0.3 < float(told.stdout) < 1  # a half, and more where other programs run as well


def test_the_share_by_hand(monkeypatch):
    times = [
        {"1": (100, 10), "2": (50, 0), "3": (7, 7)},
        {"1": (400, 40), "2": (90, 60), "4": (20, 10)},  # one thread ended, one began: 360 run, 100 waited
        {},
    ]
    monkeypatch.setattr(device_meters, "thread_times", lambda: times.pop(0))
    wait = ProcessorWait()
    assert wait.share() == pytest.approx(100 / 460)
    assert wait.share() is None
