"""A run as it is kept: `run.json`, written whole at the end, and `run.jsonl`, a line for each finished test.

Everything after a test ended, the tables, the gate, other processes and other days, works on these values; they
survive pytest-xdist and JSON unchanged.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.files import UNPRINTABLE
from pytest_llamaperf.gates import Decision
from pytest_llamaperf.records import Result, TestRecord
from pytest_llamaperf.wording import shown_path

# 1: run, results, tests, decision; and a checksum, which the first runs do not have.
SCHEMA = 1


@dataclass(frozen=True)
class RunHeader:
    """What was asked of the run, and what ran it. Times are UTC, ISO 8601; `fingerprint` is of the
    machine; what differs by engine stands with each result. `shard` is of a part of a run that was planned: the `run` it is a
    part of, its `key`, and the `machine`, as files of promises are named."""

    id: str
    started: str
    gpu: str
    engine: str
    versions: Mapping[str, str] = field(default_factory=dict)
    fingerprint: Mapping[str, object] = field(default_factory=dict)
    finished: str | None = None
    shard: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A run as it was kept. `decision` is None of one that was cut off before its end, of which some tests are known."""

    header: RunHeader
    tests: tuple[TestRecord, ...]
    decision: Decision | None = None

    @property
    def results(self) -> tuple[Result, ...]:
        return tuple(result for test in self.tests for result in test.results)


class RunLog:
    """run.jsonl: the header, then one line for each finished test, on disk before the next one starts.

    What an earlier run wrote at its end is removed, so that nobody takes it for this one if this one is cut off.
    """

    def __init__(self, folder: Path, header: RunHeader) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("run.json", "summary.md"):
            (folder / name).unlink(missing_ok=True)
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
    document = {
        "schema": SCHEMA,
        "run": asdict(header),
        "results": [result.to_dict() for test in tests for result in test.results],
        "tests": [test.to_dict(with_results=False) for test in tests],
        "decision": decision.to_dict(),
    }
    return {**document, "checksum": _checksum(document)}


def read_run(path: Path, *, sealed: bool = False) -> Run:
    """From a folder of results, a run.json, or the run.jsonl of a run that was cut off.

    Raises UsageError for what is not there, of another schema, damaged or changed since, and says where; where it has to be
    `sealed`, also for one without a checksum.
    """
    found = path
    if path.is_dir():
        found = next((path / name for name in ("run.json", "run.jsonl") if (path / name).is_file()), path / "run.json")
    where = shown_path(found)
    try:
        text = found.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        told = problem.strerror if isinstance(problem, OSError) else "it is no text"
        raise UsageError(f"{where}: cannot be read: {told}; name a folder that --results wrote") from None
    try:
        if found.suffix == ".jsonl":
            return _cut_off(where, text)
        document = _parsed(where, text)
        run = _finished(document)
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise UsageError(f"{where}: is no run as this version writes it: {type(problem).__name__}: {problem}") from None
    if (sealed or "checksum" in document) and document.get("checksum") != _checksum(document):
        raise UsageError(
            f"{where}: was changed after it was written, for its checksum is of other content; use the original"
        )
    return run


def _checksum(document: Mapping[str, Any]) -> str:
    """Of what JSON makes of a document, without the checksum itself; against accidents and hasty hands, not forgers."""
    told = {name: value for name, value in document.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _finished(document: Mapping[str, Any]) -> Run:
    results: dict[str, list[Result]] = {}
    for each in document["results"]:
        results.setdefault(each["nodeid"], []).append(Result.from_dict(each))
    tests = tuple(
        TestRecord(**{**each, "results": tuple(results.pop(each["nodeid"], ()))}) for each in document["tests"]
    )
    if results:
        raise ValueError(f"there are results of {next(iter(results))}, and no such test")
    return Run(_header(document["run"]), tests, Decision.from_dict(document["decision"]))


def _cut_off(where: str, text: str) -> Run:
    """The last line may not have been written whole."""
    first, *lines = text[: text.rfind("\n") + 1].splitlines() or [""]
    header = _header(_parsed(where, first)["run"])
    tests = []
    for number, line in enumerate(lines, 2):
        each = _json(f"{where}:{number}", line)["test"]
        tests.append(TestRecord(**{**each, "results": tuple(map(Result.from_dict, each["results"]))}))
    return Run(header, tuple(tests))


def _header(told: Mapping[str, Any]) -> RunHeader:
    header = RunHeader(**told)
    for name in ("id", "started", "gpu", "engine"):
        if not isinstance(getattr(header, name), str):
            raise TypeError(f"{name} is no text")
    for name in ("versions", "fingerprint", "shard"):
        if not isinstance(getattr(header, name), Mapping):
            raise TypeError(f"{name} has no names")
    return header


def _parsed(where: str, text: str) -> Mapping[str, Any]:
    document = _json(where, text)
    schema = document.get("schema")
    if schema != SCHEMA:
        newer = isinstance(schema, int) and schema > SCHEMA
        hint = "a newer version of pytest-llamaperf wrote it: read it with that one" if newer else "it is no run"
        raise UsageError(f"{where}: has schema {schema!r}, this version reads {SCHEMA}; {hint}")
    return document


def _json(where: str, text: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except json.JSONDecodeError as problem:
        raise UsageError(f"{where}: is no JSON (line {problem.lineno}: {problem.msg}); was it cut off?") from None
    if not isinstance(document, dict):
        raise UsageError(f"{where}: is no run")
    return document


def to_json(value: Mapping[str, Any], *, indent: int | None = None) -> str:
    """JSON without NaN and infinity, which are no JSON; raises ValueError on them."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False, indent=indent)
