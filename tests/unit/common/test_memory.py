"""Memory of a process: its own peak, whoever started it."""

import os
import subprocess
import sys

from quantharm.common.memory import memory_bytes

ASK = """
from quantharm.common.memory import memory_bytes
print(memory_bytes("cpu")["host_peak_bytes"])
block = b"x" * 2**27
del block
print(memory_bytes("cpu")["peak_bytes"])
"""


def test_the_peak_is_of_the_process_and_not_of_the_one_that_started_it():
    """Linux hands the largest resident set of a parent on to a program that it starts; this one holds torch."""
    assert memory_bytes("cpu")["peak_bytes"] > 2**27
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", ASK], env=environment, check=True, capture_output=True, text=True)
    before, after = map(int, ran.stdout.split())
    assert 2**21 < before < 2**27  # an interpreter without torch takes 9 to 20 MB
    assert 2**27 < after < 2**28  # and what it held meanwhile
