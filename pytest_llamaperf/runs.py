"""A run as it is kept: `run.json`, written whole at the end, and `run.jsonl`, a line for each finished test.

Everything after a test ended, the tables, the gate, other processes and other days, works on these values; they
survive pytest-xdist and JSON unchanged.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from pytest_llamaperf.account import EngineUse
from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.files import UNPRINTABLE, checksum, write_atomically
from pytest_llamaperf.fingerprints import kind_of
from pytest_llamaperf.gates import Decision
from pytest_llamaperf.interrupts import uninterrupted
from pytest_llamaperf.records import Result, TestRecord
from pytest_llamaperf.wording import counted, shown_path

# 1: run, results, tests, decision; and a checksum, which the first runs do not have.
SCHEMA = 1


@dataclass(frozen=True)
class RunHeader:
    """What was asked of the run, and what ran it. Times are UTC, ISO 8601; `fingerprint` is of the
    machine; what differs by engine stands with each result. `sessions` made the run, one after another where it was cut
    off and resumed; the last of several began at `resumed`. `interrupted` is what cut off the last one: a signal by its
    name, or an exit status. `shard` is of a part of a run that was planned: the `run` it is a part of, its `key`, and the
    `machine`, as files of promises are named."""

    id: str
    started: str
    gpu: str
    engine: str
    versions: Mapping[str, str] = field(default_factory=dict)
    fingerprint: Mapping[str, object] = field(default_factory=dict)
    finished: str | None = None
    sessions: int = 1
    resumed: str | None = None
    interrupted: str | None = None
    shard: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A run as it was kept. `decision` is None of one that was cut off before its end, of which some tests are known.

    `not_run` are tests that were collected and never ran; `engines` is every engine that was opened and ended.
    """

    header: RunHeader
    tests: tuple[TestRecord, ...]
    decision: Decision | None = None
    not_run: tuple[str, ...] = ()
    engines: tuple[EngineUse, ...] = ()

    @property
    def incomplete(self) -> str:
        """Why it holds less than was asked of it, empty where it does not."""
        if self.decision is None:
            return "it was cut off before its end"
        by = [f"it was cut off by {self.header.interrupted}"] if self.header.interrupted else []
        return ", ".join([*by, *([f"{counted(len(self.not_run), 'test')} never ran"] if self.not_run else [])])

    @property
    def results(self) -> tuple[Result, ...]:
        return tuple(result for test in self.tests for result in test.results)


@dataclass(frozen=True)
class Collected:
    """What a session was to run: its tests, and digests of the files they stand in, by name."""

    tests: tuple[str, ...]
    files: Mapping[str, str]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Collected:
        return cls(tuple(map(str, data["tests"])), {str(name): str(digest) for name, digest in data["files"].items()})


@dataclass(frozen=True)
class Finished:
    """A test in run.jsonl, with the reports of pytest it was made of; without them it cannot be told again."""

    record: TestRecord
    reports: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Log:
    """run.jsonl as a session left it.

    asked      under which conditions it measured; None in a file of an older version
    ended      every test had run to its end, and the decision was made
    torn       the last line was cut off while it was written, and is left out here
    durations  how long engines took in still earlier runs: `Durations.to_dict`
    """

    header: RunHeader
    tests: Mapping[str, Finished] = field(default_factory=dict)
    asked: Mapping[str, Any] | None = None
    collected: Collected | None = None
    engines: tuple[EngineUse, ...] = ()
    durations: Mapping[str, Any] = field(default_factory=dict)
    ended: bool = False
    torn: bool = False


class RunLog:
    """run.jsonl: the header, then one line for each finished test, on disk before the next one starts.

    What an earlier run wrote at its end is removed, so that nobody takes it for this one if this one is cut off.
    """

    def __init__(self, folder: Path, header: RunHeader, begin: Log | None = None) -> None:
        """With what `begin` holds of the run, if it is one that goes on; the header is its own."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("run.json", "summary.md"):
            (folder / name).unlink(missing_ok=True)
        self._path = folder / "run.jsonl"
        # Whole, so that a session that is killed here leaves the file of the one before it.
        write_atomically(self._path, "".join(to_json(line) + "\n" for line in _lines(begin or Log(header), header)))
        self._file = self._path.open("a", encoding="utf-8", errors=UNPRINTABLE)

    def collected(self, collected: Collected) -> None:
        self._write({"collected": asdict(collected)})

    def add(self, test: TestRecord, reports: Sequence[Mapping[str, Any]] = ()) -> None:
        self._write(_test_line(Finished(test, tuple(reports))))

    def add_engine(self, use: EngineUse) -> None:
        self._write({"engine": use.to_dict()})

    def end(self) -> None:
        """The run is whole: there is nothing to go on with."""
        self._write({"ended": True})

    def check(self) -> None:
        """Raises OSError where the file is no longer the one that stands there: somebody removed or replaced it."""
        if not os.path.samestat(os.fstat(self._file.fileno()), self._path.stat()):
            raise OSError(errno.ESTALE, "run.jsonl was replaced during the run")

    def close(self) -> None:
        """Raises OSError as `check` does."""
        with self._file:
            self.check()

    def _write(self, line: Mapping[str, object]) -> None:
        with uninterrupted():
            self._file.write(to_json(line) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())


def _lines(log: Log, header: RunHeader) -> Iterator[Mapping[str, object]]:
    first: dict[str, object] = {"schema": SCHEMA, "run": asdict(header)}
    if log.asked is not None:
        first |= {"asked": log.asked, "durations": log.durations}
    yield first
    if log.collected:
        yield {"collected": asdict(log.collected)}
    yield from (_test_line(finished) for finished in log.tests.values())
    yield from ({"engine": use.to_dict()} for use in log.engines)


def _test_line(finished: Finished) -> dict[str, object]:
    line: dict[str, object] = {"test": finished.record.to_dict()}
    return {**line, "reports": finished.reports} if finished.reports else line


def run_document(
    header: RunHeader,
    tests: Sequence[TestRecord],
    decision: Decision,
    *,
    not_run: Sequence[str] = (),
    engines: Sequence[EngineUse] = (),
    durations: Mapping[str, object] = MappingProxyType({}),
) -> dict[str, object]:
    """The content of run.json. `durations` are how long engines took, for the deadlines of later runs."""
    document = {
        "schema": SCHEMA,
        "run": asdict(header),
        "results": [result.to_dict() for test in tests for result in test.results],
        "tests": [test.to_dict(with_results=False) for test in tests],
        "not_run": list(not_run),
        "engines": [use.to_dict() for use in engines],
        "durations": dict(durations),
        "decision": decision.to_dict(),
    }
    return {**document, "checksum": checksum(document)}


def read_run(path: Path, *, sealed: bool = False) -> Run:
    """From a folder of results, a run.json, or the run.jsonl of a run that was cut off.

    Raises UsageError for what is not there, of another schema, damaged or changed since, and says where; where it has to be
    `sealed`, also for one without a checksum.
    """
    where = shown_path(path)
    try:
        found = _file(path)
        where = shown_path(found)
        if found.suffix == ".jsonl":
            log = read_log(found)
            return Run(log.header, tuple(finished.record for finished in log.tests.values()), engines=log.engines)
        text = found.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise _unreadable(where, problem) from None
    try:
        document = _parsed(where, text)
        run = _finished(document)
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise UsageError(f"{where}: is no run as this version writes it: {type(problem).__name__}: {problem}") from None
    if (sealed or "checksum" in document) and document.get("checksum") != checksum(document):
        raise UsageError(
            f"{where}: was changed after it was written, for its checksum is of other content; use the original"
        )
    return run


def _unreadable(where: str, problem: OSError | UnicodeDecodeError) -> UsageError:
    told = problem.strerror if isinstance(problem, OSError) else "it is no text"
    return UsageError(f"{where}: cannot be read: {told}; name a folder that --results wrote")


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    return next((path / name for name in ("run.json", "run.jsonl") if (path / name).is_file()), path / "run.json")


def _finished(document: Mapping[str, Any]) -> Run:
    results: dict[str, list[Result]] = {}
    for each in document["results"]:
        results.setdefault(each["nodeid"], []).append(Result.from_dict(each))
    tests = tuple(TestRecord.from_dict(each, results.pop(each["nodeid"], ())) for each in document["tests"])
    if results:
        raise ValueError(f"there are results of {next(iter(results))}, and no such test")
    return Run(
        _header(document["run"]),
        tests,
        Decision.from_dict(document["decision"]),
        tuple(map(str, document.get("not_run", ()))),
        tuple(map(EngineUse.from_dict, document.get("engines", ()))),
    )


def read_log(path: Path) -> Log:
    """run.jsonl. The last line may not have been written whole, and is left out then.

    Raises UsageError for a file that cannot be read, and says which line is none.
    """
    where = shown_path(path)
    try:
        # Cut before it is decoded: the end may lie within a character.
        whole, _, rest = path.read_bytes().rpartition(b"\n")
        text = whole.decode()
    except (OSError, UnicodeDecodeError) as problem:
        raise _unreadable(where, problem) from None
    return dataclasses.replace(_log(where, text), torn=bool(rest))


def read_durations(folder: Path, machine: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """How long engines took in earlier runs of a folder, and the name of the file that tells; empty where none does.

    Another kind of `machine` teaches nothing. Raises UsageError for a file that cannot be read, or is no run.
    """
    for path in (folder / "run.json", folder / "run.jsonl"):
        if path.is_file():
            where = shown_path(path)
            try:
                text = path.read_text(encoding="utf-8")
                document = _parsed(where, text.partition("\n")[0] if path.suffix == ".jsonl" else text)
                before = _header(document["run"]).fingerprint
                alike = (kind_of(before), before.get("cores")) == (kind_of(machine), machine.get("cores"))
                return (document.get("durations", {}), where) if alike else ({}, "")
            except (OSError, ValueError, KeyError, TypeError) as problem:
                raise UsageError(f"{where}: cannot be read: {problem}") from None
    return {}, ""


def _log(where: str, text: str) -> Log:
    # Not `splitlines`, which also splits where JSON does not: at U+2028, at U+0085.
    first, *lines = text.split("\n")
    number = 1
    try:
        document = _parsed(where, first)
        if not isinstance(document.get("asked", {}), dict):
            raise TypeError("asked has no names")
        log = Log(_header(document["run"]), asked=document.get("asked"), durations=document.get("durations", {}))
        tests: dict[str, Finished] = {}
        engines: list[EngineUse] = []
        for number, line in enumerate(lines, 2):  # told where one is wrong
            match _json(f"{where}:{number}", line):
                case {"test": dict(test), **more}:
                    found = Finished(_record(test), tuple(map(dict, more.get("reports", ()))))
                    tests[found.record.nodeid] = _with(tests.get(found.record.nodeid), found)
                case {"engine": dict(use)}:
                    engines.append(EngineUse.from_dict(use))
                case {"collected": dict(collected)}:
                    log = dataclasses.replace(log, collected=Collected.from_dict(collected))
                case {"ended": True}:
                    log = dataclasses.replace(log, ended=True)
                case _:
                    raise ValueError("neither a test nor anything else that is kept")
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise UsageError(
            f"{where}:{number}: is no line as this version writes it: {type(problem).__name__}: {problem}"
        ) from None
    return dataclasses.replace(log, tests=tests, engines=tuple(engines))


def _with(before: Finished | None, now: Finished) -> Finished:
    """Attempts of one session at a test belong together; a later session began anew."""
    if before is None or before.record.session != now.record.session:
        return now
    return Finished(now.record, (*before.reports, *now.reports))


def _record(told: Mapping[str, Any]) -> TestRecord:
    return TestRecord.from_dict(told, map(Result.from_dict, told["results"]))


def _header(told: Mapping[str, Any]) -> RunHeader:
    header = RunHeader(**told)
    for name in ("id", "started", "gpu", "engine"):
        if not isinstance(getattr(header, name), str):
            raise TypeError(f"{name} is no text")
    for name in ("versions", "fingerprint", "shard"):
        if not isinstance(getattr(header, name), Mapping):
            raise TypeError(f"{name} has no names")
    if not isinstance(header.sessions, int):
        raise TypeError("sessions is no number")
    for name in ("finished", "resumed", "interrupted"):
        if not isinstance(getattr(header, name), str | None):
            raise TypeError(f"{name} is no text")
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
        document = json.loads(text, parse_constant=_refused)
    except json.JSONDecodeError as problem:
        raise UsageError(f"{where}: is no JSON (line {problem.lineno}: {problem.msg}); was it cut off?") from None
    except (ValueError, RecursionError) as problem:
        raise UsageError(f"{where}: is no JSON: {problem}") from None
    if not isinstance(document, dict):
        raise UsageError(f"{where}: is no run")
    return document


def _refused(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}")


def to_json(value: Mapping[str, Any], *, indent: int | None = None) -> str:
    """JSON without NaN and infinity, which are no JSON; raises ValueError on them."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False, indent=indent)
