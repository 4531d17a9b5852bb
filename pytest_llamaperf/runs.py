"""A run as it is kept: `run.json`, written whole at the end, and `run.jsonl`, a line for each finished test.

Everything after a test ended, the tables, the gate, other processes and other days, works on these values; they
survive pytest-xdist and JSON unchanged.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pytest_llamaperf.files import UNPRINTABLE
from pytest_llamaperf.gates import Decision
from pytest_llamaperf.records import TestRecord

# 1: run, results, tests, decision.
SCHEMA = 1


@dataclass(frozen=True)
class RunHeader:
    """What was asked of the run, and what ran it. Times are UTC, ISO 8601; `fingerprint` is of the
    machine; what differs by engine stands with each result."""

    id: str
    started: str
    gpu: str
    engine: str
    versions: Mapping[str, str] = field(default_factory=dict)
    fingerprint: Mapping[str, object] = field(default_factory=dict)
    finished: str | None = None


class RunLog:
    """run.jsonl: the header, then one line for each finished test, on disk before the next one starts.

    A run.json of an earlier run is removed, so that nobody takes it for this one if this one is cut off.
    """

    def __init__(self, folder: Path, header: RunHeader) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.json").unlink(missing_ok=True)
        self._file = (folder / "run.jsonl").open("w", encoding="utf-8", errors=UNPRINTABLE)
        self._write({"schema": SCHEMA, "run": asdict(header)})

    def add(self, test: TestRecord) -> None:
        self._write({"test": test.to_dict()})

    def close(self) -> None:
        self._file.close()

    def _write(self, line: Mapping[str, object]) -> None:
        self._file.write(to_json(line) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def run_document(header: RunHeader, tests: Sequence[TestRecord], decision: Decision) -> dict[str, object]:
    """The content of run.json."""
    return {
        "schema": SCHEMA,
        "run": asdict(header),
        "results": [result.to_dict() for test in tests for result in test.results],
        "tests": [test.to_dict(with_results=False) for test in tests],
        "decision": {"releasable": decision.releasable, "reasons": list(decision.reasons)},
    }


def to_json(value: Mapping[str, Any], *, indent: int | None = None) -> str:
    """JSON without NaN and infinity, which are no JSON; raises ValueError on them."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False, indent=indent)
