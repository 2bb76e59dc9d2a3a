"""Names of locals and arguments: what is held, not that something was found."""

import ast

from quantharm.config.dependencies import PACKAGE

SAY_NOTHING = {"found"}


def names_of(source: str) -> set[str]:
    """The names that a file gives: to its locals, in comprehensions, and to its arguments."""
    nodes = list(ast.walk(ast.parse(source)))
    given = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return given | {node.arg for node in nodes if isinstance(node, ast.arg)}


def test_names_say_what_they_hold():
    files = {path: names_of(path.read_text(encoding="utf-8")) & SAY_NOTHING for path in PACKAGE.rglob("*.py")}
    assert [str(path.relative_to(PACKAGE)) for path, names in files.items() if names] == []


def test_every_kind_of_name_is_seen():
    for line in ("found = 1", "def f(found): ...", "[found for found in []]", "x = (found := 2)"):
        assert "found" in names_of(line)
