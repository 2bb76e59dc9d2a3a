"""Fixtures of the workflow tests: the project as shipped or made small, and two finished ones that were run once."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cut_model import cut_to_two_layers
from forks import ForkServer
from workflow_project import MODEL_LIBRARIES, STAGE_ENVIRONMENT, Project, Result, evaluation_python


@pytest.fixture(scope="session")
def snakemakes() -> Iterator[ForkServer]:
    """Snakemake, imported once."""
    with ForkServer(["snakemake.cli"]) as server:
        yield server


@pytest.fixture(scope="session")
def stages() -> Iterator[ForkServer]:
    """The evaluation interpreter with the libraries of the stages imported once."""
    with ForkServer(MODEL_LIBRARIES, evaluation_python(), STAGE_ENVIRONMENT) as server:
        yield server


@pytest.fixture
def shipped(tmp_path: Path, snakemakes: ForkServer) -> Project:
    """The project as it is, nothing run yet."""
    return Project.fresh(tmp_path / "project", snakemakes)


@pytest.fixture
def small(tmp_path: Path, snakemakes: ForkServer) -> Project:
    """The project with the shortened protocol; its interpreter fails, so no stage can do anything."""
    project = Project.fresh(tmp_path / "project", snakemakes)
    project.shorten()
    project.use_python("/bin/false")
    return project


@pytest.fixture(scope="session")
def built_in(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Result]:
    """The one run of all four methods on the built-in model, by the commands that a user types; do not change it."""
    python = evaluation_python()
    project = Project.fresh(tmp_path_factory.mktemp("built_in") / "project")
    project.shorten()
    project.edit("protocols/tiny/window_tokens", 1024)
    project.edit("protocols/tiny/windows", 6)
    project.edit("methods/awq/calibration_tokens", 256)
    project.use_python(python)
    return project, project.run()


@pytest.fixture(scope="session")
def cheap(tmp_path_factory: pytest.TempPathFactory, snakemakes: ForkServer, stages: ForkServer) -> Project:
    """The same of a model of two layers, for tests that are about the workflow; do not change it, take `finished`."""
    project = Project.fresh(tmp_path_factory.mktemp("cheap") / "project", snakemakes)
    project.shorten()
    cut_to_two_layers(project / "data/reference-model")
    project.use_python(stages.shell_words)
    project.run()
    return project


@pytest.fixture
def finished(cheap: Project, tmp_path: Path) -> Project:
    """A copy of the finished cheap project, free to be changed."""
    return cheap.copy(tmp_path / "project")
