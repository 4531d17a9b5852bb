"""Accepting: reviewed values of a run become promises in git, one by one, with the reason.

A run only proposes. What may become a promise is measured, in two restarts or more, judged against the promise that
still stands, and no worse than it; everything else is left out, with why.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from pytest_llamaperf.baselines import (
    LOCAL,
    REASON,
    SCHEMA,
    Baseline,
    BaselineBook,
    can_be_promised,
    decimal,
    promises_of,
    read_baselines,
)
from pytest_llamaperf.cases import CPU, Case, Workload
from pytest_llamaperf.catalog import case_of_key, gpus
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
from pytest_llamaperf.errors import DocumentError, UsageError, nearest
from pytest_llamaperf.files import write_atomically
from pytest_llamaperf.measurements import Source, Summary
from pytest_llamaperf.metrics import Better, Metric, metric_named
from pytest_llamaperf.recording import (
    commit_of,
    engine_version,
    pooled_spreads,
    promise_text,
    quoted,
    record_text,
    tolerance_of,
)
from pytest_llamaperf.records import Result, TestRecord
from pytest_llamaperf.runs import Run
from pytest_llamaperf.verdicts import Outcome
from pytest_llamaperf.wording import amount, change, shown_path

_BOM = "\ufeff"


@dataclass(frozen=True)
class Asked:
    """Which values of a run are to become promises, and why.

    cases, metrics  patterns of ids or keys (`*` is any text), names; none is all
    even_worse      also what is worse than promised
    replace_published  also in the place of a figure that somebody published
    """

    reason: str
    cases: Sequence[str] = ()
    metrics: Sequence[str] = ()
    even_worse: bool = False
    replace_published: bool = False

    def __post_init__(self) -> None:
        if not self.reason.strip():
            raise UsageError(
                "a promise needs a reason: say why these values are right, in a sentence for its reviewers"
            )
        if not self.reason.isprintable():
            raise UsageError(f"a reason is one line of plain text, not {self.reason!r}")


@dataclass(frozen=True)
class Promise:
    """A value that is to be promised, and what is promised in its place now, if anything is."""

    case: Case
    metric: Metric
    value: float
    tolerance: float
    recorded: Mapping[str, str]
    old: Baseline | None


@dataclass(frozen=True)
class Review:
    """What a run proposes: promises, cases and metrics that are promised so already, and what is left out by why."""

    promises: tuple[Promise, ...] = ()
    unchanged: tuple[str, ...] = ()
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class NewText:
    """A baseline file as it will be. `old` is what stands in it now, None where there is no such file."""

    path: Path
    old: str | None
    new: str
    count: int

    def write(self) -> None:
        """Raises UsageError where the file cannot be written, or is no longer the one that was read."""
        where = shown_path(self.path)
        if (read_text(self.path) if self.path.exists() else None) != self.old:
            raise UsageError(f"{where}: somebody else changed it meanwhile; nothing was written to it, run this again")
        if self.old is not None and not self.path.stat().st_mode & 0o222:
            raise UsageError(f"{where}: is read-only; nothing was written to it")
        try:
            write_atomically(self.path, self.new)
        except OSError as problem:
            raise UsageError(f"{where}: cannot be written: {problem.strerror}") from None


def review(run: Run, folder: Path, asked: Asked) -> Review:
    """What of the run may become a promise in `folder`.

    Raises UsageError where nothing in the run is what was asked for, where the run contradicts itself, and for baseline
    files that cannot be read.
    """
    chosen = _chosen(run, asked)
    unchanged: list[str] = []
    left_out: dict[str, list[str]] = {}
    measured: dict[str, tuple[Case, Summary, Result]] = {}
    for test in run.tests:
        for result in test.results:
            try:
                measured.setdefault(_name(result), (*_promisable(test, result), result))
            except _LeftOut as why:
                left_out.setdefault(str(why), []).append(_name(result))
    # Of all that was measured, for a few restarts of one case say little about how much restarts differ.
    recorder = _Recorder.of(run, [summary for _, summary, _ in measured.values()], folder, asked.reason)
    book = cache(lambda hardware: read_baselines(folder, hardware))
    promises: list[Promise] = []
    for name in (name for name in chosen if name in measured):
        case, summary, result = measured[name]
        try:
            promise = _proposed(case, summary, result, book(case.hardware), asked, recorder)
        except _LeftOut as why:
            left_out.setdefault(str(why), []).append(name)
            continue
        if promise:
            promises.append(promise)
        else:
            unchanged.append(name)
    told = {why: tuple(name for name in names if name in chosen) for why, names in left_out.items()}
    return Review(tuple(promises), tuple(unchanged), {why: names for why, names in told.items() if names})


def new_texts(promises: Iterable[Promise], folder: Path) -> tuple[NewText, ...]:
    """The files of all promises. Each is read back strictly, and says what it said before but for these promises.

    Raises UsageError, or DocumentError, where that cannot be had.
    """
    by_file: dict[tuple[Path, str], list[Promise]] = {}
    for promise in promises:
        path = promise.old.path if promise.old else folder / promise.case.hardware / f"{promise.case.model}.yaml"
        by_file.setdefault((path, promise.case.hardware), []).append(promise)
    return tuple(_new_text(path, hardware, changes) for (path, hardware), changes in by_file.items())


class _LeftOut(Exception):
    """Its text is why a value may not be promised."""


@dataclass(frozen=True)
class _Recorder:
    """What promises of one run have in common. `spreads` are relative standard deviations of a restart."""

    date: str
    commit: str
    reason: str
    spreads: Mapping[Metric, float]

    @classmethod
    def of(cls, run: Run, summaries: Sequence[Summary], folder: Path, reason: str) -> _Recorder:
        return cls(run.header.started[:10], commit_of(folder), reason, pooled_spreads(summaries))

    def recorded(self, case: Case, result: Result) -> dict[str, str]:
        return {
            "date": self.date,
            "version": engine_version(case.engine, result.fingerprint.get("versions", {})),
            "restarts": str(len(result.values)),
            "commit": self.commit,
            REASON: self.reason,
        }

    def tolerance(self, summary: Summary, *, on_cpu: bool) -> float:
        """Of a value that nothing was promised for: as `pytest --record` takes it, from the spread between restarts."""
        return tolerance_of(summary, self.spreads[summary.metric], on_cpu=on_cpu)


def _chosen(run: Run, asked: Asked) -> dict[str, None]:
    """Names of the values that were asked for, in the order of the run. Raises UsageError where there are none."""
    if not run.results:
        raise UsageError("nothing was judged in this run, so there is nothing to accept")
    ids = sorted({str(result.case["id"]) for result in run.results})
    for pattern in asked.cases:
        if not any(_matches(name, pattern) for name in ids):
            close = get_close_matches(pattern, [*ids, *(_key(name) for name in ids)], n=3, cutoff=0.4)
            known = f"nearest: {', '.join(close)}" if close else f"it has {ids[0]}, for example"
            raise UsageError(f"--case {pattern}: no case of this run is called so; {known} (* is any text)")
    metrics = {result.metric for result in run.results if result.metric}
    for name in asked.metrics:
        if name not in metrics:
            raise UsageError(f"--metric {name}: nothing in this run is about it; {nearest(name, metrics)}")
    chosen = {
        _name(result): None
        for result in run.results
        if (not asked.cases or any(_matches(str(result.case["id"]), pattern) for pattern in asked.cases))
        and (not asked.metrics or result.metric in asked.metrics)
    }
    if not chosen:
        raise UsageError(f"no case of --case {', '.join(asked.cases)} has {', '.join(asked.metrics)} in this run")
    return chosen


def _proposed(
    case: Case, summary: Summary, result: Result, book: BaselineBook, asked: Asked, recorder: _Recorder
) -> Promise | None:
    """None where it is promised so already. Raises _LeftOut."""
    current = book.find(case, summary.metric)
    if current and current.source is Source.MEASURED and decimal(current.value) == decimal(summary.value):
        return None
    if _was_judged_by_another(result, current):
        now = f"{_told(current)} ({current.place})" if current else "nothing"
        raise _LeftOut(f"judged against another promise than the one that stands now, {now}: measure it again")
    own = current if current and current.case.key == case.key else None
    if own and own.source is Source.PUBLISHED and not asked.replace_published:
        raise _LeftOut("published by others; --replace-published puts what was measured in its place")
    lower = current is not None and _is_worse(summary.metric, summary.value, current.value)
    if (lower or result.outcome == Outcome.REGRESSION) and not asked.even_worse:
        by = f", {change(summary.value, current.value)} from {_told(current)}" if current else ""
        raise _LeftOut(f"worse than promised{by}; if that is wanted, --even-worse")
    tolerance = own.tolerance if own else recorder.tolerance(summary, on_cpu=case.hardware == CPU)
    return Promise(case, summary.metric, summary.value, tolerance, recorder.recorded(case, result), own)


def _promisable(test: TestRecord, result: Result) -> tuple[Case, Summary]:
    """The case and its value, as far as a run alone tells whether it may be promised. Raises _LeftOut."""
    if result.outcome == Outcome.ERROR or result.metric is None or result.value is None:
        raise _LeftOut("an error, no value")
    if result.source != Source.MEASURED:
        raise _LeftOut(f"{result.source or 'of unknown source'}, not measured: it never becomes a promise")
    if result.case.get("task") is not None:
        raise _LeftOut("of a task: those are compared with a reference, not promised (docs/accuracy.md)")
    try:
        case = _case(str(result.case["id"]))
        metric = metric_named(result.metric)
    except UsageError as problem:
        raise _LeftOut(str(problem)) from None
    if not can_be_promised(case):
        raise _LeftOut(f"{case.model} is known by its path alone: add it to the catalog of models first")
    _refuse_contradiction(result, metric)
    if test.attempts > 1:
        raise _LeftOut(f"passed at attempt {test.attempts} only: what is picked from several is no measurement")
    if len(result.values) < 2:
        raise _LeftOut("one restart does not show how much restarts differ: measure with --restarts 3 or more")
    if result.outcome not in (Outcome.PASS, Outcome.NO_BASELINE, Outcome.REGRESSION):
        raise _LeftOut(f"{result.outcome}: measure it again with more --restarts")
    if result.value <= 0:
        raise _LeftOut("a promise is above zero")
    return case, Summary(metric, Source.MEASURED, result.values, result.value, None, None)


def _case(case_id: str) -> Case:
    """Raises UsageError for what this version does not know."""
    hardware, _, key = case_id.partition("/")
    if hardware != CPU and hardware not in gpus():
        raise UsageError(f"unknown hardware {hardware!r}; {nearest(hardware, (*gpus(), CPU))}")
    return case_of_key(hardware, key)


def _refuse_contradiction(result: Result, metric: Metric) -> None:
    """Raises UsageError for a value that is not what the rest of the result says: somebody edited it."""
    name = _name(result)
    if result.unit != metric.unit:
        raise UsageError(
            f"{name}: is in {result.unit} in this run, and {metric} is in {metric.unit}: nothing is accepted"
        )
    assert result.value is not None
    if not result.values or not math.isclose(statistics.mean(result.values), result.value, rel_tol=1e-9):
        raise UsageError(f"{name}: its value is not the mean of its restarts: was the run edited? Nothing is accepted")


def _was_judged_by_another(result: Result, current: Baseline | None) -> bool:
    """Whether the promise was changed since, so that the verdict of the run is about something else."""
    judged: Mapping[str, Any] | None = result.baseline
    if judged is not None and "file" not in judged:
        return False  # another build, measured in turn
    if judged is not None and Path(str(judged["file"])).parent.name == LOCAL:
        judged = None  # what one machine promised itself counts where nobody reviewed any
    before = None if judged is None else tuple(judged.get(name) for name in ("value", "tolerance", "source"))
    return before != (None if current is None else (current.value, current.tolerance, current.source.value))


def _is_worse(metric: Metric, value: float, other: float) -> bool:
    return value < other if metric.better is Better.HIGHER else value > other


def _told(promise: Baseline) -> str:
    return amount(promise.value, promise.metric.unit)


def _name(result: Result) -> str:
    return f"{result.case['id']} {result.metric}" if result.metric else str(result.case["id"])


def _key(case_id: str) -> str:
    """The id without its hardware."""
    return case_id.partition("/")[2]


def _matches(case_id: str, pattern: str) -> bool:
    return fnmatchcase(case_id, pattern) or fnmatchcase(_key(case_id), pattern)


def _new_text(path: Path, hardware: str, changes: Sequence[Promise]) -> NewText:
    old = read_text(path) if path.exists() else None
    before = [] if old is None else promises_of(path, hardware, old)
    try:
        new = _document(changes) if old is None else _changed(old, hardware, changes)
        after = promises_of(path, hardware, new)
    except (yaml.YAMLError, DocumentError) as problem:  # not every way to write YAML can be edited by positions
        raise UsageError(f"{shown_path(path)}: would no longer be readable ({problem}); write them by hand") from None
    expected = {(each.case.key, each.metric): _content(each) for each in before}
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
