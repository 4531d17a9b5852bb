"""Promises in the texts of baseline files, in which nothing else is changed."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from pytest_llamaperf.accepting.reviewing import Promise
from pytest_llamaperf.baselines import SCHEMA, Baseline, decimal, promises_of
from pytest_llamaperf.cache import default_root
from pytest_llamaperf.cases import Case, Workload
from pytest_llamaperf.catalog import case_of_key
from pytest_llamaperf.documents import read_text
from pytest_llamaperf.editing import (
    Edit,
    Pair,
    added,
    column_of,
    composed,
    edited,
    pair_named,
    pairs,
    removed,
    replaced,
    replaced_pair,
)
from pytest_llamaperf.errors import DocumentError, UsageError
from pytest_llamaperf.files import write_atomically
from pytest_llamaperf.measurements import Source
from pytest_llamaperf.recording import promise_text, quoted, record_text
from pytest_llamaperf.wording import shown_path

_BOM = "\ufeff"
_LONGEST_WAIT = 30.0  # seconds, for another process that writes promises, which takes far less


@dataclass(frozen=True)
class NewText:
    """A baseline file as it will be. `old` is what stands in it now, None where there is no such file."""

    path: Path
    old: str | None
    new: str
    count: int


def write(texts: Sequence[NewText], folder: Path) -> None:
    """All of them, or none where one is no longer the file that was read, or may not be written.

    Raises UsageError, also for a disk that is full, and says which files were written before it was.
    """
    with _alone(folder):
        for each in texts:
            if (read_text(each.path) if each.path.exists() else None) != each.old:
                raise UsageError(_refusal(each, "somebody else changed it meanwhile", ", run this again"))
            if each.old is not None and not each.path.stat().st_mode & 0o222:
                raise UsageError(_refusal(each, "is read-only"))
        for number, each in enumerate(texts):
            try:
                write_atomically(each.path, each.new)
            except OSError as problem:
                before = (
                    f"; written before it: {', '.join(shown_path(t.path) for t in texts[:number])}" if number else ""
                )
                raise UsageError(f"{shown_path(each.path)}: cannot be written: {problem.strerror}{before}") from None


def _refusal(text: NewText, problem: str, remedy: str = "") -> str:
    return f"{shown_path(text.path)}: {problem}; nothing was written{remedy}"


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time compares the files of a folder with what it has read, and replaces them.

    The lock is in the user's cache, because whatever is in the folder would be committed.
    """
    locks = default_root() / "locks"
    name = hashlib.sha256(str(folder.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    lock = FileLock(locks / f"baselines-{name}.lock", timeout=_LONGEST_WAIT)
    try:
        locks.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UsageError(f"another process is writing promises to {shown_path(folder)}; nothing was written") from None
    except OSError as problem:
        raise UsageError(f"{locks}: cannot be locked: {problem.strerror}; nothing was written") from None
    try:
        yield
    finally:
        lock.release()


def new_texts(promises: Iterable[Promise], folder: Path) -> tuple[NewText, ...]:
    """The files of all promises. Each is read back strictly, and says what it said before but for these promises.

    Raises UsageError, or DocumentError, where that cannot be had.
    """
    by_file: dict[tuple[Path, str], list[Promise]] = {}
    for promise in promises:
        path = promise.old.path if promise.old else folder / promise.case.hardware / f"{promise.case.model}.yaml"
        by_file.setdefault((path, promise.case.hardware), []).append(promise)
    return tuple(_new_text(path, hardware, changes) for (path, hardware), changes in by_file.items())


def _new_text(path: Path, hardware: str, changes: Sequence[Promise]) -> NewText:
    old = read_text(path) if path.exists() else None
    before = [] if old is None else promises_of(path, hardware, old)
    expected = {(each.case.key, each.metric): _content(each) for each in before}
    for each in changes:
        stands = expected.get((each.case.key, each.metric))
        if stands != (_content(each.old) if each.old else None):
            raise UsageError(
                f"{shown_path(path)}: somebody else changed it meanwhile; nothing was written, run this again"
            )
    try:
        new = _document(changes) if old is None else _changed(old, hardware, changes)
        after = promises_of(path, hardware, new)
    except (yaml.YAMLError, DocumentError) as problem:  # not every way to write YAML can be edited by positions
        raise UsageError(f"{shown_path(path)}: would no longer be readable ({problem}); write them by hand") from None
    for each in changes:
        expected[each.case.key, each.metric] = _content(_as_baseline(each, path))
    if {(each.case.key, each.metric): _content(each) for each in after} != expected:
        raise UsageError(f"{shown_path(path)}: more than these promises would change; write them by hand")
    return NewText(path, old, new, len(changes))


def _as_baseline(promise: Promise, path: Path) -> Baseline:
    """As the loader should read it."""
    value, tolerance = float(decimal(promise.value)), float(decimal(promise.tolerance))
    if promise.old:
        tolerance = promise.tolerance
    return Baseline(
        promise.case, promise.metric, value, tolerance, Source.MEASURED, "", path, 0,
        recorded=promise.recorded, note=promise.old.note if promise.old else "",
    )  # fmt: skip


def _content(promise: Baseline) -> Baseline:
    """All it says, wherever it stands."""
    return replace(promise, line=0)


def _document(changes: Sequence[Promise]) -> str:
    case = changes[0].case
    header = f"# Promises for {case.model} on {case.hardware}. See docs/baselines.md for how to read this."
    cases = [_case_text(key, several, column=2) for key, several in _by_case(changes)]
    return "\n".join([header, f"schema: {SCHEMA}", "", "promises:", *(f"  {text}" for text in cases)]) + "\n"


def _changed(old: str, hardware: str, changes: Sequence[Promise]) -> str:
    text = old.removeprefix(_BOM)
    promises = _named(composed(text), "promises")
    known = {case_of_key(hardware, pair.key.value).key: pair for pair in pairs(promises.inner)}
    column = column_of(promises.inner) if known else promises.column
    edits: list[Edit] = []
    new_cases: dict[int, list[str]] = {}
    for key, several in _by_case(changes):
        if key not in known:
            place = _place(several[0].case, [case_of_key(hardware, name) for name in known])
            told = _case_text(key, several, column=column, flow=bool(promises.inner.flow_style))
            new_cases.setdefault(place, []).append(told)
            continue
        metrics = known[key].inner
        for promise in several:
            if promise.old:
                edits += _new_value(text, _named(metrics, promise.metric.name), promise)
        if new := [promise for promise in several if not promise.old]:
            within = column_of(metrics) if metrics.value else known[key].column
            edits.append(added(text, metrics, [_metric_text(promise, column=within) for promise in new], within))
    edits += [added(text, promises.inner, told, column, place) for place, told in new_cases.items()]
    return old[: len(old) - len(text)] + _without_unused_references(edited(text, edits))


def _new_value(text: str, entry: Pair, promise: Promise) -> Iterator[Edit]:
    yield replaced(_named(entry.inner, "value").value, decimal(promise.value))
    reference = pair_named(entry.inner, "reference")
    if reference:
        column = entry.column
        yield replaced(_named(entry.inner, "source").value, Source.MEASURED.value)
        record = f"recorded: {record_text(promise.recorded, column=column + 2)}"
        yield replaced_pair(text, reference, record, column)
        return
    recorded = _named(entry.inner, "recorded")
    for name, told in promise.recorded.items():
        pair = pair_named(recorded.inner, name)
        if pair is None:
            yield added(text, recorded.inner, [f"{name}: {quoted(told)}"], recorded.column)
        elif pair.value.value != told:
            yield replaced(pair.value, told if name == "restarts" else quoted(told))


def _place(case: Case, known: Sequence[Case]) -> int:
    """The number of the case it goes behind: of those most like it the last with requests no longer than its own."""
    return max(range(len(known)), key=lambda n: (*_likeness(known[n], case), n), default=-1)


def _likeness(other: Case, case: Case) -> tuple[int, bool, bool]:
    alike = [a == b for a, b in zip(other.key.split("/")[:4], case.key.split("/")[:4], strict=True)]
    shared = next((n for n, same in enumerate(alike) if not same), len(alike))
    return shared, _order(other)[0] == _order(case)[0], _order(other) <= _order(case)


def _order(case: Case) -> tuple[str, int, int]:
    """Of cases in a file, where nobody chose another."""
    work = case.work
    return (work.scenario, work.isl, work.osl) if isinstance(work, Workload) else (work.name, 0, 0)


def _by_case(changes: Sequence[Promise]) -> Iterator[tuple[str, list[Promise]]]:
    ordered = sorted(changes, key=lambda promise: (_order(promise.case), promise.case.key))
    for key, several in groupby(ordered, key=lambda promise: promise.case.key):
        yield key, list(several)


def _case_text(key: str, several: Sequence[Promise], *, column: int, flow: bool = False) -> str:
    """A case with its metrics, which begin two columns from its own."""
    begin = f"\n{' ' * (column + 2)}"
    metrics = [begin + _metric_text(promise, column=column + 2) for promise in several]
    return f"{key}: {{{','.join(metrics)}}}" if flow else f"{key}:{''.join(metrics)}"


def _metric_text(promise: Promise, *, column: int) -> str:
    told = promise_text(promise.metric, promise.value, promise.tolerance, promise.recorded, column=column + 2)
    return f"{promise.metric}:\n{' ' * (column + 2)}{told}"


def _without_unused_references(text: str) -> str:
    """A reference goes with the last promise that named it: the loader refuses one that nobody uses."""
    while unused := _unused_reference(composed(text)):
        text = edited(text, [removed(text, unused)])
    return text


def _unused_reference(root: yaml.MappingNode) -> Pair | None:
    """One of `references`, or all of them as one pair where none is used."""
    references = pair_named(root, "references")
    if references is None:
        return None
    entries = [entry.inner for case in pairs(_named(root, "promises").inner) for entry in pairs(case.inner)]
    used = {pair.value.value for entry in entries if (pair := pair_named(entry, "reference"))}
    unused = [pair for pair in pairs(references.inner) if pair.key.value not in used]
    if not unused:
        return None
    return references if len(unused) == len(references.inner.value) else unused[-1]


def _named(mapping: yaml.MappingNode, name: str) -> Pair:
    found = pair_named(mapping, name)
    assert found is not None  # the strict loader has read it
    return found
