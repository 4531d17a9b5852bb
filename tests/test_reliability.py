"""docs/reliability.md: every promise has a test, and that test is there."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest
from reliability_page import PAGE, faults, named, rows

TESTS = Path(__file__).parent


@functools.cache
def marked_and_known(file: str) -> tuple[bool, frozenset[str]]:
    """Whether a whole file is marked `faults`, and the names of its test functions."""
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    names = {
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    marked = any(isinstance(node, ast.Assign) and "pytest.mark.faults" in ast.unparse(node) for node in tree.body)
    return marked, frozenset(names)


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:50])
def test_a_promise_is_kept_by_tests_that_are_there(row: tuple[str, ...]) -> None:
    assert all(row)
    tests = named(row[-1])
    assert tests
    assert row[-1] == ", ".join(f"`{file}::{test}`" for file, test in tests)
    for file, test in tests:
        assert test in marked_and_known(file)[1], f"{file} has no {test}"


def test_every_fault_that_is_marked_as_one_stands_on_the_page() -> None:
    told = set(named(PAGE.read_text(encoding="utf-8")))
    for path in sorted(TESTS.glob("test_*.py")):
        marked, names = marked_and_known(path.name)
        missing = {name for name in names if marked and (path.name, name) not in told and "with_room" not in name}
        assert not missing, f"{path.name}: {sorted(missing)}"


def test_rows_of_the_fault_table_are_marked() -> None:
    (row,) = (test for file, test in faults() if file == "test_boards.py")

    collected = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--collect-only", "-m", "faults", TESTS / "test_boards.py"],
        cwd=TESTS.parent, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip

    assert [line.rpartition("::")[2] for line in collected.stdout.splitlines() if "::" in line] == [row]
