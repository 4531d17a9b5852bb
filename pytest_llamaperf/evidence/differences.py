"""In what does a failure differ from what it was compared with: the record of its promise, and an earlier run of its case."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pytest_llamaperf.comparing.likeness import Difference, differences
from pytest_llamaperf.evidence.earlier import Found
from pytest_llamaperf.markdown import escaped
from pytest_llamaperf.observations import Observation, observations_of
from pytest_llamaperf.recording import engine_version
from pytest_llamaperf.records import Result, TestRecord
from pytest_llamaperf.runs import Run, RunHeader
from pytest_llamaperf.verdicts import Outcome
from pytest_llamaperf.wording import amount


@dataclass(frozen=True)
class Compared:
    """A result beside what is known of earlier ones.

    promise   what its record says and how that is now: value, version, date, commit, restarts; empty without a promise
    earlier   where an earlier value of the case was found, empty where there is none
    settings  in what the two values differ: versions, settings, machine
    """

    metric: str | None
    outcome: str
    message: str
    promise: tuple[Difference, ...]
    earlier: str
    settings: tuple[Difference, ...]


def compared(result: Result, header: RunHeader, commit: str, earlier: Sequence[Found]) -> Compared:
    """`commit` is that of the baselines now; `earlier` are values of this case from before, the latest last."""
    record = (result.baseline or {}).get("recorded") or {}
    found = _nearest(earlier, str(record.get("date", "")))
    ours = _observation(result, header)
    return Compared(
        result.metric,
        result.outcome,
        result.message,
        tuple(_promise(result, record, header, commit)),
        found[0] if found and ours else "",
        tuple(_between(found[1], ours)) if found and ours else (),
    )


def document(test: TestRecord, found: Sequence[Compared]) -> dict[str, Any]:
    """difference.json."""
    return {
        "schema": 1,
        "nodeid": test.nodeid,
        "case": test.case,
        "outcome": test.outcome,
        "results": [asdict(each) for each in found],
    }


def told(test: TestRecord, found: Sequence[Compared], notes: Sequence[str]) -> str:
    """difference.md. `notes` say what could not be had."""
    return "".join(f"{line}\n" for line in _lines(test, found, notes))


def _lines(test: TestRecord, found: Sequence[Compared], notes: Sequence[str]) -> Iterator[str]:
    yield f"# {escaped(test.outcome)}: {escaped(test.case or test.nodeid)}"
    yield ""
    yield f"Test {escaped(test.nodeid)}."
    if not found:
        yield f"\nNothing that it judged says why: {escaped(test.reason or 'no reason given')}"
    for each in found:
        yield f"\n## {escaped(each.outcome)}{': ' + escaped(each.metric) if each.metric else ''}\n\n{escaped(each.message)}\n"
        if each.promise:
            yield from _table(("", "promised", "now"), each.promise)
        elif each.metric:
            yield "Nothing was promised for it."
        if each.earlier and each.settings:
            yield f"\nIn what it differs from {escaped(each.earlier)}:\n"
            yield from _table(("", "then", "now"), each.settings)
        elif each.earlier:
            yield f"\nVersions, settings and machine are those of {escaped(each.earlier)}."
        elif each.metric:
            yield "\nNo earlier run of this case is known here, so that its settings could be compared."
        else:
            yield "An error has no settings that could be compared."
    for note in notes:
        yield f"\n{escaped(note)}"


def _table(heading: tuple[str, str, str], rows: Iterable[Difference]) -> Iterator[str]:
    yield f"| {' | '.join(heading)} |"
    yield "| --- | --- | --- |"
    for row in rows:
        yield f"| {escaped(row.field)} | {_shown(row.before)} | {_shown(row.after)} |"


def _shown(value: Any) -> str:
    return "-" if value is None else escaped(str(value))


def _promise(result: Result, record: Mapping[str, Any], header: RunHeader, commit: str) -> Iterator[Difference]:
    """What is equal stands there too: somebody looks for what has changed, and may trust in nothing."""
    if result.baseline is None:
        return
    unit = result.unit or ""
    now = None if result.value is None else amount(result.value, unit)
    yield Difference("value", amount(float(result.baseline["value"]), unit), now)
    yield Difference("source", result.baseline["source"], result.source)
    if reference := result.baseline.get("reference"):
        yield Difference("reference", reference, None)
    if record:
        engine = str(result.case["engine"])
        version = engine_version(engine, result.fingerprint.get("versions", {}))
        yield Difference("version", record.get("version"), version)
        yield Difference("date", record.get("date"), header.started[:10])
        yield Difference("restarts", record.get("restarts"), str(len(result.values)))
        yield Difference("commit", record.get("commit"), commit)


def _observation(result: Result, header: RunHeader) -> Observation | None:
    """None for an error, which has no value."""
    test = TestRecord(result.nodeid, result.outcome, 0.0, results=(result,))
    return next(iter(observations_of(Run(header, (test,)))), None)


def _nearest(known: Sequence[Found], date: str) -> Found | None:
    """The value of the day on which the promise was recorded, else the last that passed, else the last."""
    of_the_day = [found for found in known if date and (found[1].when or "").startswith(date)]
    passed = [found for found in known if found[1].outcome == Outcome.PASS]
    return next((found[-1] for found in (of_the_day, passed, known) if found), None)


def _between(before: Observation, after: Observation) -> Iterator[Difference]:
    """All versions, that of what is under test too, then everything by which two values are unlike."""
    for name in sorted(before.versions.keys() | after.versions.keys()):
        if before.versions.get(name) != after.versions.get(name):
            yield Difference(name, before.versions.get(name), after.versions.get(name))
    versions = before.versions.keys() | after.versions.keys()
    yield from (each for each in differences(before, after) if each.field not in versions)
