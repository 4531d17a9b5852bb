"""docs/reliability.md: every promise has a test, and that test is there."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "reliability.md"


def rows() -> list[list[str]]:
    """Cells of every row of a table, without headings."""
    tables: list[list[list[str]]] = []
    before = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("|"):
            if not before.startswith("|"):
                tables.append([])
            tables[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        before = line
    return [row for table in tables for row in table[2:]]


@functools.cache
def marked_and_known(file: str) -> tuple[bool, frozenset[str]]:
    """Whether a whole file is marked `faults`, and the names of its test functions."""
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    names = {
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    marked = any(isinstance(node, ast.Assign) and "pytest.mark.faults" in ast.unparse(node) for node in tree.body)
    return marked, frozenset(names)


ROWS = rows()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:50])
def test_a_promise_is_kept_by_tests_that_are_there(row: list[str]) -> None:
    assert all(row)
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row[-1])
    assert named
    assert row[-1] == ", ".join(f"`{file}::{test}`" for file, test in named)
    for file, test in named:
        assert test in marked_and_known(file)[1], f"{file} has no {test}"


def test_every_fault_that_is_marked_as_one_stands_on_the_page() -> None:
    told = set(re.findall(r"`(test_\w+\.py)::(test_\w+)`", PAGE.read_text(encoding="utf-8")))
    for path in sorted(TESTS.glob("test_*.py")):
        marked, names = marked_and_known(path.name)
        missing = {name for name in names if marked and (path.name, name) not in told and "with_room" not in name}
        assert not missing, f"{path.name}: {sorted(missing)}"
