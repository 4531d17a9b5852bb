"""The one page about the architecture is true: its table of modules is the order of imports."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "pytest_llamaperf"


def rows() -> dict[str, int]:
    """Module -> its row in the table, counted from the top."""
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| [^|]*\| ([^|]+) \|", page.split("## Modules")[1].split("## ")[0], re.MULTILINE)
    return {name: number for number, cell in enumerate(table) for name in re.findall(r"`(\w+)/?`", cell)}


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports, at the top or late."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pytest_llamaperf"):
            parts = (node.module or "").split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return found


def modules() -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        files.setdefault(name, []).append(path)
    del files["__init__"]
    return files


def test_every_module_stands_in_the_table() -> None:
    assert set(rows()) == set(modules())


@pytest.mark.parametrize("module", sorted(modules()))
def test_a_module_imports_from_its_own_row_or_below(module: str) -> None:
    place = rows()
    upward = {
        other
        for path in modules()[module]
        for other in imported(path)
        if other in place and place[other] < place[module]
    }

    assert upward == set()
