"""The files of this package that a module is made of, read from its import statements.

The workflow lists them as inputs of a stage, so an edit re-runs the stages that depend on it and no others.
"""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
NAME = PACKAGE.name
TYPES_ALONE = "TYPE_CHECKING"


def file_of(module: str) -> Path | None:
    """The file of `quantharm.x` (or of the folder `quantharm.x`), None for anything else."""
    parts = module.split(".")
    if parts[0] != NAME:
        return None
    path = PACKAGE.joinpath(*parts[1:])
    if path.is_dir():
        return path / "__init__.py"
    return path.with_suffix(".py") if path.with_suffix(".py").is_file() else None


def statements_that_run(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """All statements of a block and of the blocks inside it, but those under `if TYPE_CHECKING:`, which no job runs.

    Expressions are passed over: they hold no import, and are nine tenths of a syntax tree.
    """
    for statement in body:
        if isinstance(statement, ast.If) and isinstance(statement.test, ast.Name) and statement.test.id == TYPES_ALONE:
            continue
        yield statement
        for block in ("body", "orelse", "finalbody", "handlers", "cases"):
            yield from statements_that_run(getattr(statement, block, []))


@functools.cache
def imported(path: Path) -> frozenset[Path]:
    """Files of this package that one file imports, at its top or inside functions; not those for types alone."""
    files: set[Path | None] = set()
    for node in statements_that_run(ast.parse(path.read_bytes()).body):
        if isinstance(node, ast.Import):
            files |= {file_of(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            files.add(file_of(node.module))
            files |= {file_of(f"{node.module}.{alias.name}") for alias in node.names}
    return frozenset(p for p in files if p is not None) | rooms_around(path)


def rooms_around(path: Path) -> frozenset[Path]:
    """The `__init__` of every room that a file lies in, which Python runs first; the package's own holds no code."""
    rooms = [folder for folder in path.parents if folder.is_relative_to(PACKAGE) and folder != PACKAGE]
    return frozenset(room / "__init__.py" for room in rooms)


def module_files(*modules: str) -> list[Path]:
    """All files that the modules `quantharm.<module>` are made of, themselves included, sorted."""
    waiting = []
    for module in modules:
        path = file_of(f"{NAME}.{module}")
        if path is None:
            raise ValueError(f"{NAME} has no module {module}")
        waiting.append(path)
    seen: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            waiting += imported(path)
    return sorted(seen)
