"""Packages that only some methods need: installed once, in a folder that only their cells see."""

from workflow_project import TEXT, Project, evaluation_python, everything, toy_wheel

TOY = "packages of envs/toy.txt, for the methods that need them (once)"


def with_toy(project: Project) -> Project:
    """A method whose quantizer asks for a package, that package as a wheel, and an environment that is built."""
    wheel = toy_wheel(project)
    (project / "envs/toy.txt").write_text(f"./{wheel.name}\n", encoding="utf-8")
    source = (project / "workflow/quantharm/quantizers/bitsandbytes_4bit.py").read_text(encoding="utf-8")
    (project / "workflow/quantharm/quantizers/toy.py").write_text(source + '\nPACKAGES = "toy"\n', encoding="utf-8")
    project.edit("methods/toy", {"quantizer": "toy", "quant_type": "nf4"})
    python = project / ".venv-evaluation/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {evaluation_python()} "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    (project / ".venv-evaluation/installed.txt").write_text("", encoding="utf-8")
    return project


def test_a_methods_packages_are_installed_for_its_cells_alone(shipped):
    project = with_toy(shipped)
    mtime = ("--rerun-triggers", "mtime")
    assert TOY not in project.jobs(*mtime)
    jobs = project.snakemake("-n", "-p", "results/reference/toy/checks.json", *mtime)
    assert TOY in jobs.output
    commands = [line for line in jobs.output.splitlines() if " -m quantharm." in line]
    of_toy = [line for line in commands if "/toy/" in line]
    assert of_toy
    assert [line for line in of_toy if "PYTHONPATH=.venv-extra/toy:" not in line] == []
    assert not [line for line in commands if "/toy/" not in line and ".venv-extra" in line]
    project.run(".venv-extra/toy/installed.txt", *mtime)
    assert (project / ".venv-extra/toy/toy.py").is_file()
    assert TOY not in project.jobs("results/reference/toy/checks.json", *mtime)


def test_packages_that_cannot_be_installed_end_in_one_sentence(shipped):
    project = with_toy(shipped)
    (project / "envs/toy.txt").write_text("./missing-1.0-py3-none-any.whl\n", encoding="utf-8")
    result = project.snakemake(".venv-extra/toy/installed.txt", "--rerun-triggers", "mtime")
    log = (project / "results/logs/extra_packages/toy.log").read_text(encoding="utf-8")
    assert result.code != 0
    assert "envs/toy.txt could not be installed" in log
    assert not (project / ".venv-extra/toy/installed.txt").exists()


def test_an_interpreter_of_ones_own_has_to_bring_them(small):
    small.edit("methods/toy", {"quantizer": "bitsandbytes_4bit", "quant_type": "nf4"})
    assert small.jobs("results/reference/summary.json") == everything() - {"reference: report"} | {TEXT}
