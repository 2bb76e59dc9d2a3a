"""Stages as forks of one interpreter: they end as if they had been started, and nothing outlives its caller."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from limits import HUNG_SECONDS, wait_until

from quantharm.common import fork_server, warm_start

PACKAGE = Path(warm_start.__file__).parents[2]
STAGE = """
import os, signal, sys, time
print("output", sys.argv[1:], os.environ.get("COLOUR"), os.getcwd(), "decimal" in sys.modules, flush=True)
print(os.getpid(), os.environ.get("QUANTHARM_WARM_START"), file=sys.stderr, flush=True)
{ending}
"""


@pytest.fixture(autouse=True, scope="module")
def interrupts():
    """A program that was started in the background ignores SIGINT, and so would all that it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def until(condition):
    wait_until(condition, "what a warm start should do did not happen")


def gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Its folder: a server that has imported `decimal`, of a run that is this process."""
    folder = tmp_path_factory.mktemp("server")
    command = [sys.executable, "-P", fork_server.__file__, str(folder), str(os.getpid()), "decimal", "not_a_library"]
    process = subprocess.Popen(command, env={name: v for name, v in os.environ.items() if name != "PYTHONPATH"})
    until(lambda: (folder / "socket").exists())
    yield folder
    process.kill()
    process.wait()


@pytest.fixture
def stage(server, tmp_path):
    """stage(ending, …): starts `python -m a_stage` of a package that begins as quantharm does; returns the process."""

    def start(ending: str = "", *flags: str, folder=server, run: int | None = None, **environment) -> subprocess.Popen:
        package = tmp_path / "package" / "quantharm"
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").write_text((PACKAGE / "quantharm" / "__init__.py").read_text())
        (package / "a_stage.py").write_text(STAGE.format(ending=ending))
        if not (package / "common").exists():
            (package / "common").symlink_to(PACKAGE / "quantharm" / "common")
        variables = os.environ | {
            "PYTHONPATH": str(package.parent),
            warm_start.VARIABLE: f"{folder}:{run or os.getpid()}",
            **environment,
        }
        command = [sys.executable, "-m", "quantharm.a_stage", *flags]
        return subprocess.Popen(
            command, env=variables, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return start


def test_a_stage_has_its_callers_words_folder_and_environment_and_the_servers_imports(stage, tmp_path):
    process = stage("", "--flag", "a value", COLOUR="green")
    out, err = process.communicate(timeout=HUNG_SECONDS)
    assert out == f"output ['--flag', 'a value'] green {tmp_path} True\n"
    forked, variable = err.split()
    assert (int(forked) != process.pid, variable, process.returncode) == (True, "None", 0)


@pytest.mark.parametrize(
    ("ending", "code", "words"),
    [
        ("sys.exit(3)", 3, ""),
        ("sys.exit('error: one sentence')", 1, "error: one sentence"),
        ("1 / 0", 1, "ZeroDivisionError"),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
    ],
)
def test_it_ends_as_the_fork_ended(stage, ending, code, words):
    process = stage(ending)
    _, err = process.communicate(timeout=HUNG_SECONDS)
    assert process.returncode == code
    assert words in err


def test_a_fork_knows_that_it_is_one(stage, tmp_path):
    ending = f"print(os.environ.get({warm_start.FORKED!r}))"
    assert stage(ending).communicate()[0].endswith("\n1\n")
    assert stage(ending, folder=tmp_path / "no server").communicate()[0].endswith("\nNone\n")


def test_an_edited_module_counts(stage):
    stage("print('first')").communicate(timeout=HUNG_SECONDS)
    out, _ = stage("print('second')").communicate(timeout=HUNG_SECONDS)
    assert out.endswith("second\n")


def test_an_interruption_reaches_the_fork(stage):
    process = stage(
        "try:\n    print('ready', flush=True)\n    time.sleep(600)\n"
        "except KeyboardInterrupt:\n    sys.exit('error: interrupted')"
    )
    until(lambda: process.stdout.readline() == "ready\n")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=HUNG_SECONDS)
    assert (process.returncode, err.splitlines()[1:]) == (1, ["error: interrupted"])


def test_a_fork_does_not_outlive_its_caller(stage):
    process = stage("time.sleep(600)")
    fork = int(process.stderr.readline().split()[0])
    process.kill()
    process.communicate(timeout=HUNG_SECONDS)
    until(lambda: gone(fork))


def test_a_fork_does_not_outlive_what_waits_for_it(stage):
    """Its job fails then and is begun again: two of it would write the same files."""
    process = stage("print(os.getppid(), flush=True)\ntime.sleep(600)")
    fork = int(process.stderr.readline().split()[0])
    process.stdout.readline()
    os.kill(int(process.stdout.readline()), signal.SIGKILL)
    _, err = process.communicate(timeout=HUNG_SECONDS)
    assert (process.returncode, "run the same command again" in err) == (1, True)
    until(lambda: gone(fork))


def test_what_a_cluster_started_is_started_as_ever(stage):
    """A job of another process tree, or of a folder that is not on this host."""
    other = subprocess.Popen(["sleep", "600"])
    for keywords in ({"run": other.pid}, {"folder": "/nowhere"}):
        process = stage("", **keywords)
        out, err = process.communicate(timeout=HUNG_SECONDS)
        assert int(err.split()[0]) == process.pid
        assert out.endswith("False\n")
    other.kill()
    other.wait()


def test_a_job_with_packages_of_its_own_is_started_as_ever(stage, tmp_path):
    """The server's libraries were imported without them, and remember that they were not there."""
    package, own = tmp_path / "package", tmp_path / "own"
    out, err = (process := stage("", PYTHONPATH=f"{own}:{package}")).communicate(timeout=HUNG_SECONDS)
    assert (int(err.split()[0]), out.endswith("False\n")) == (process.pid, True)
    of_the_run = {warm_start.PATH_VARIABLE: f"workflow:{own}", "PYTHONPATH": f"{package}:workflow:{own}"}
    out, err = (process := stage("", **of_the_run)).communicate(timeout=HUNG_SECONDS)
    assert (int(err.split()[0]) != process.pid, out.endswith("True\n")) == (True, True)


@pytest.mark.parametrize("variables", [{}, {"PYTHONSAFEPATH": "1"}], ids=["with its folder", "safe path"])
def test_a_fork_looks_for_modules_where_its_caller_does(server, stage, variables):
    jobs = [stage("print(sys.path)", folder=folder, **variables) for folder in (server, "/nowhere")]
    warm, cold = (job.communicate(timeout=HUNG_SECONDS)[0].splitlines() for job in jobs)
    assert (warm[0].endswith("True"), cold[0].endswith("False"), warm[1]) == (True, True, cold[1])


def test_a_fork_takes_as_many_threads_as_its_caller_would(tmp_path, monkeypatch):
    """With MKL no more than the processor has cores; a `--cores` beyond them once gave a fork other last digits."""
    (tmp_path / "torch.py").write_text(
        "from os import environ\n"
        "def get_num_threads(): return min(3, int(environ['OMP_NUM_THREADS']), int(environ['MKL_NUM_THREADS']))"
    )
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    with monkeypatch.context() as patched:
        patched.syspath_prepend(tmp_path)
        assert fork_server.import_libraries(("decimal", "torch", "fractions"), lambda: True) == 3
    taken = []
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(set_num_threads=taken.append))
    monkeypatch.setitem(
        sys.modules,
        "threadpoolctl",
        SimpleNamespace(threadpool_limits=lambda limits, user_api: taken.append((user_api, limits))),
    )
    monkeypatch.setitem(sys.modules, "numpy", sys)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    fork_server.set_threads(3)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    fork_server.set_threads(3)
    assert taken == [2, ("blas", 1), 3, ("blas", 1)]


def test_the_server_has_the_libraries_of_the_runs_path(tmp_path, monkeypatch):
    """A run with newer libraries in PYTHONPATH once computed with the interpreter's own, and recorded the newer."""
    folder, own = tmp_path / "server", tmp_path / "own"
    for made in (folder, own):
        made.mkdir()
    (tmp_path / "decimal.py").write_text("print('of the run')")
    (own / "decimal.py").write_text("print('of one job')")
    monkeypatch.setenv(warm_start.PATH_VARIABLE, str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{own}:{PACKAGE}:{tmp_path}")  # of the job that starts it
    started = []
    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", lambda command, env, **_: started.append((command, env)))
        patched.setattr(sys, "orig_argv", ["python", "-s", "-m", "quantharm.a_stage"])
        warm_start.start_server(str(folder), str(os.getpid()))
    command, environment = started[0]
    assert command[:3] == [sys.executable, "-s", "-P"]  # with the flags of a program that calls the interpreter
    with subprocess.Popen([*command, "decimal"], env=environment, stdout=subprocess.PIPE, text=True) as server:
        until(lambda: (folder / "socket").exists())
        server.kill()
        assert server.stdout.read().startswith("of the run\n")


def test_the_first_job_starts_the_server_and_is_started_as_ever(stage, tmp_path, monkeypatch):
    folder = tmp_path / "new"
    folder.mkdir()
    run = subprocess.Popen(["sleep", "600"])
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-m", "quantharm.checks"])
    monkeypatch.setattr(warm_start, "is_ancestor", lambda process: process == run.pid)
    monkeypatch.setenv(warm_start.VARIABLE, f"{folder}:{run.pid}")
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: started.append(command))
    warm_start.hand_over()
    warm_start.hand_over()
    assert len(started) == 1
    assert started[0][-2:] == [str(folder), str(run.pid)]
    monkeypatch.undo()
    server = subprocess.Popen([*started[0], "decimal"])
    until(lambda: (folder / "socket").exists())
    run.kill()
    run.wait()  # and the server ends with its run
    server.wait(HUNG_SECONDS)
    assert not folder.exists()


def test_a_server_whose_run_has_ended_imports_nothing_more(tmp_path, capsys):
    fork_server.serve(str(tmp_path / "removed"), os.getpid(), ("decimal",))
    assert capsys.readouterr().out == ""


def test_stages_that_use_the_network_are_started_as_ever(server, monkeypatch):
    """They start the server for those that follow, once, where none is there."""
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: started.append(command))
    monkeypatch.setenv(warm_start.VARIABLE, f"{server}:{os.getpid()}")
    for name in warm_start.ONLINE:
        monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-m", name])
        warm_start.hand_over()  # returns
    assert len(started) == 1


def test_a_library_that_starts_cuda_is_left_out(monkeypatch):
    assert not fork_server.cuda_has_started() or os.path.exists("/dev/nvidia0")
    assert fork_server.threads_with("decimal")
    assert fork_server.threads_with("not_a_library") is None
    monkeypatch.setattr(fork_server, "cuda_has_started", lambda: "fractions" in sys.modules)
    sys.modules.pop("fractions", None)
    assert fork_server.threads_with("fractions") is None
    assert "fractions" not in sys.modules  # tried in a fork
