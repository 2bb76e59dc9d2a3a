"""Snakemake as it is, but its executor asks for its jobs every second.

The executor waits ten seconds longer after each time that no job has ended, and no option changes that. It is kind to a
cluster, says nothing about the workflow, and would take half of the time of these tests.
"""

import sys

from snakemake.cli import main
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor

RemoteExecutor.next_seconds_between_status_checks = property(lambda self: 1, lambda self, longer: None)

if __name__ == "__main__":
    sys.exit(main())
