"""A real SLURM of one node with pretended GPUs, one unless more are asked for.

It has its own configuration, ports, munge key and folders, all in one temporary folder that is found through
SLURM_CONF, so that it stands beside another SLURM of the machine. Needs root and Debian's slurmctld, slurmd,
slurm-client and munge (tests/install.sh), but no systemd, no cgroups and no accounting. CPUs and memory are what
the configuration says, not what the machine has: SLURM counts them and does not enforce them.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from limits import HUNG_SECONDS, wait_until

GPU_FILES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random")  # SLURM wants a file for each GPU that it counts
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol")
SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
NODE = socket.gethostname().split(".")[0]
CPUS = 2
MEMORY_MB = 12_000  # for more than one of the reference model's jobs, so that memory is not what keeps them apart
FINISHED = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT", "OUT_OF_MEMORY")

SLURM_CONF = """ClusterName=quantharm
SlurmctldHost={node}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmdDebug=debug
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=1
MinJobAge=3600
KillWait=2
SlurmdTimeout=0
MessageTimeout=100
BatchStartTimeout={hung}
UnkillableStepTimeout={hung}
NodeName={node} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} Gres=gpu:{gpus} State=UNKNOWN
PartitionName=main Nodes={node} Default=YES MaxTime=INFINITE State=UP
"""
# The executor's job step drops SLURM_CONF before it calls srun; a real site has its configuration where srun looks.
SRUN = """#!/bin/sh
SLURM_CONF={folder}/slurm.conf exec {srun} "$@"
"""
# Answers when `held` is gone, and says with `asked` that it waits.
SQUEUE = """#!/bin/sh
while [ -e {folder}/held ]; do touch {folder}/asked; sleep 0.1; done
exec {squeue} "$@"
"""


def missing() -> str | None:
    """Why there can be no SLURM here, or None."""
    lacking = [program for program in PROGRAMS if not shutil.which(program, path=SEARCH)]
    if lacking:
        return f"no {', '.join(lacking)} on this machine (tests/install.sh installs them, as root on Debian)"
    if os.geteuid() != 0:
        return "the daemons of the test SLURM run as root, and this is not root"
    return None


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class SingleNode:
    """`with SingleNode() as slurm:` starts it and, however the block ends, stops what was started."""

    def __init__(self, gpus: int = 1) -> None:
        self.gpus = gpus
        self.folder = Path(tempfile.mkdtemp(prefix="quantharm-slurm-", dir="/tmp"))  # short: holds a socket
        self.environment = {
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": f"{self.folder}/bin{os.pathsep}{SEARCH}",
        }

    def __enter__(self) -> "SingleNode":
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # Starting and stopping

    def start(self) -> None:
        self.configure()
        munge = self.folder / "munge"
        flags = {
            "--socket": "socket",
            "--key-file": "key",
            "--pid-file": "pid",
            "--log-file": "log",
            "--seed-file": "seed",
        }
        self.daemon("munged", "--force", *(f"{flag}={munge}/{name}" for flag, name in flags.items()))
        self.daemon("slurmctld", "-f", str(self.folder / "slurm.conf"))
        self.daemon("slurmd", "-f", str(self.folder / "slurm.conf"))
        self.wait(lambda: self.node_state().startswith("IDLE"), "the node is not idle")

    def configure(self) -> None:
        for name in ("munge", "state", "spool", "bin"):
            (self.folder / name).mkdir()
        (self.folder / "munge/key").write_bytes(os.urandom(1024))
        (self.folder / "munge/key").chmod(0o400)
        controller_port, node_port = free_ports(2)
        text = SLURM_CONF.format(
            folder=self.folder,
            node=NODE,
            cpus=CPUS,
            memory=MEMORY_MB,
            gpus=self.gpus,
            hung=HUNG_SECONDS,
            controller_port=controller_port,
            node_port=node_port,
        )
        (self.folder / "slurm.conf").write_text(text)
        devices = "".join(f"NodeName={NODE} Name=gpu File={file}\n" for file in GPU_FILES[: self.gpus])
        (self.folder / "gres.conf").write_text(devices)
        for name, text in {"srun": SRUN, "squeue": SQUEUE}.items():
            wrapper = self.folder / "bin" / name
            wrapper.write_text(text.format(folder=self.folder, **{name: shutil.which(name, path=SEARCH)}))
            wrapper.chmod(0o755)

    def daemon(self, program: str, *arguments: str) -> None:
        """Start a daemon; it goes to the background and leaves its process id in a file."""
        command = [shutil.which(program, path=SEARCH), *arguments]
        done = subprocess.run(
            command, env=os.environ | self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if done.returncode != 0:
            raise RuntimeError(f"{program} does not start: {done.stderr.strip()}\n{self.logs()}")

    def stop(self) -> None:
        """Cancel the jobs, then end the daemons by their pid files, and remove the folder."""
        with contextlib.suppress(Exception):
            self.cancel_all()
        for name in ("slurmd.pid", "slurmctld.pid", "munge/pid"):
            end_process(self.folder / name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def logs(self) -> str:
        """The last lines of each daemon's log."""
        files = [*self.folder.glob("*.log"), self.folder / "munge/log"]
        return "\n".join(f"{f.name}:\n" + "\n".join(f.read_text().splitlines()[-15:]) for f in files if f.is_file())

    # What a user types

    def command(self, *words: str) -> str:
        done = subprocess.run(words, env=os.environ | self.environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def node_state(self) -> str:
        state = re.search(r"State=(\S+)", self.command("scontrol", "show", "node", NODE))
        return state[1] if state else ""

    def jobs(self) -> dict[int, dict[str, str]]:
        """{job id: {key: value}} of every job since the start, as `scontrol show job` tells it."""
        lines = self.command("scontrol", "--oneliner", "show", "job").splitlines()
        records = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines if line.startswith("JobId=")]
        return {int(record["JobId"]): record for record in records}

    def jobs_after(self, last: int) -> list[dict[str, str]]:
        return [record for number, record in sorted(self.jobs().items()) if number > last]

    def last_job(self) -> int:
        return max(self.jobs(), default=0)

    def cancel_all(self) -> None:
        active = [str(number) for number, job in self.jobs().items() if job["JobState"] not in FINISHED]
        if active:
            self.command("scancel", *active)
            self.wait(lambda: "COMPLETING" not in self.command("squeue", "--noheader", "--format=%T"), "jobs stay")

    def set_node(self, state: str) -> None:
        reason = ["Reason=test"] if state == "DOWN" else []
        self.command("scontrol", "update", f"NodeName={NODE}", f"State={state}", *reason)

    @contextlib.contextmanager
    def holds_squeue(self) -> Iterator[None]:
        """From when somebody asks squeue: it answers after this block."""
        (self.folder / "asked").unlink(missing_ok=True)
        (self.folder / "held").touch()
        try:
            self.wait((self.folder / "asked").is_file, "nobody asks squeue")
            yield
        finally:
            (self.folder / "held").unlink()

    def wait(self, condition: Callable[[], object], complaint: str) -> None:
        """Until condition() is true; a command that fails meanwhile counts as not yet."""

        def holds() -> bool:
            with contextlib.suppress(RuntimeError):
                return bool(condition())
            return False

        wait_until(holds, lambda: f"{complaint}\n{self.logs()}")


def end_process(pid_file: Path) -> None:
    """SIGTERM to the process that a pid file names, and SIGKILL if that does not help."""
    try:
        process = int(pid_file.read_text())
    except (OSError, ValueError):
        return

    def gone() -> bool:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, 0)
            return False
        return True

    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGTERM)
        try:
            wait_until(gone, f"{pid_file.name}: SIGTERM does not end it")
        except AssertionError:
            os.kill(process, signal.SIGKILL)
