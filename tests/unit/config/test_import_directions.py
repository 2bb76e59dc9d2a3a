"""Who may import whom: stages import rooms, rooms import downwards, and nobody imports a stage."""

import ast
import re
from pathlib import Path

import pytest

from quantharm.config.dependencies import PACKAGE

# From the top down: a room imports itself and those after it.
ROOMS = [
    "gating",
    "publishing",
    "reporting",
    "forensics",
    "harness",
    "speed",
    "engines",
    "quantizers",
    "scoring",
    "models",
    "config",
    "common",
]
REGISTRIES = {"quantharm.quantizers", "quantharm.engines"}  # loading by name: they import none of their room
MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(module: str) -> str | None:
    """The room that a module `quantharm.…` lies in; None for a stage."""
    parts = module.split(".")[1:]
    return parts[0] if parts and (PACKAGE / parts[0]).is_dir() else None


def is_stage(module: str) -> bool:
    return module.count(".") == 1 and room_of(module) is None


def imports_of(source: str) -> set[str]:
    """The modules of the package that a file names in its imports, wherever they stand in it."""
    named = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            named |= {name for name in inside if is_module(name)} or {node.module}
    return {name for name in named if name.startswith("quantharm.")}


def is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def fault(importer: str, imported: str) -> str | None:
    """Why one module must not import another, or None."""
    room, other = room_of(importer), room_of(imported)
    if is_stage(imported):
        return f"{importer} imports the stage {imported}"
    if room is None or other is None or room == other or imported in REGISTRIES:
        return None
    return None if ROOMS.index(room) < ROOMS.index(other) else f"{importer} imports {imported} from below"


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def test_every_room_has_its_place():
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()} <= set(ROOMS)


def test_beside_the_rooms_the_package_lists_the_stages_and_nothing_else():
    rules = "".join(path.read_text(encoding="utf-8") for path in (PACKAGE.parent / "rules").glob("*.smk"))
    stages = set(re.findall(r'\*\*command\(\s*"(\w+)"', rules))
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} == stages


def test_imports_go_downwards_and_never_to_a_stage():
    faults = [
        words
        for path in MODULES
        for imported in sorted(imports_of(path.read_text(encoding="utf-8")))
        if (words := fault(name_of(path), imported))
    ]
    assert faults == []


@pytest.mark.parametrize(
    ("importer", "line"),
    [
        ("quantharm.scoring.forward", "from quantharm.logits import make_trace"),
        ("quantharm.divergence", "from quantharm import logits"),
        ("quantharm.config.methods", "from quantharm.quantizers import awq"),
        ("quantharm.common.text", "def late():\n    import quantharm.models.loading"),
        ("quantharm.models.loading", "from quantharm.scoring.forward import output_head"),
    ],
)
def test_what_is_forbidden_is_seen(importer, line):
    assert [fault(importer, imported) for imported in imports_of(line)] != [None]


def test_the_registry_of_quantizers_may_be_imported_from_below():
    assert [fault("quantharm.models.loading", i) for i in imports_of("from quantharm.quantizers import x")] == [None]
