"""Fixtures of the workflow tests: a project as shipped, one made small, and a finished one that was run once."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from workflow_project import Project, Result, evaluation_python


@pytest.fixture
def shipped(tmp_path: Path) -> Project:
    """The project as it is, nothing run yet."""
    return Project.fresh(tmp_path / "project")


@pytest.fixture
def small(tmp_path: Path) -> Project:
    """The project with the shortened protocol; its interpreter fails, so no stage can do anything."""
    project = Project.fresh(tmp_path / "project")
    project.shorten()
    project.use_python("/bin/false")
    return project


@pytest.fixture(scope="session")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Result]:
    """One real run of all four methods on the reference model; do not change it, take `finished`."""
    python = evaluation_python()
    project = Project.fresh(tmp_path_factory.mktemp("first_run") / "project")
    project.shorten()
    project.use_python(python)
    return project, project.run()


@pytest.fixture
def finished(first_run: tuple[Project, Result], tmp_path: Path) -> Iterator[Project]:
    """A copy of the finished project, free to be changed."""
    return first_run[0].copy(tmp_path / "project")
