"""What docs/reliability.md says: its tables, and the tests that it names."""

from __future__ import annotations

import functools
import re
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "reliability.md"
FAULT_TABLE = "## Fault table"


@functools.cache
def rows() -> tuple[tuple[str, ...], ...]:
    """Cells of every row of a table, without headings."""
    tables: list[list[tuple[str, ...]]] = []
    before = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("|"):
            if not before.startswith("|"):
                tables.append([])
            tables[-1].append(tuple(cell.strip() for cell in line.strip("|").split("|")))
        before = line
    return tuple(row for table in tables for row in table[2:])


def named(text: str) -> list[tuple[str, str]]:
    """Files and names of tests."""
    return re.findall(r"`(test_\w+\.py)::(test_\w+)`", text)


@functools.cache
def faults() -> frozenset[tuple[str, str]]:
    """Tests of the fault table."""
    _, _, table = PAGE.read_text(encoding="utf-8").partition(FAULT_TABLE)
    return frozenset(named(table.partition("\n## ")[0]))
