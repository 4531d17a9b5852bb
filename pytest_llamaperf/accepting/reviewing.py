"""What of a run may become a promise, and why the rest may not.

That is what was measured, in two restarts or more, judged against the promise that still stands, and no worse than it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from pytest_llamaperf.baselines import (
    LOCAL,
    REASON,
    Baseline,
    BaselineBook,
    can_be_promised,
    decimal,
    read_baselines,
)
from pytest_llamaperf.cases import CPU, Case
from pytest_llamaperf.catalog import case_of_key, gpus
from pytest_llamaperf.errors import UsageError, nearest
from pytest_llamaperf.measurements import Source, Summary
from pytest_llamaperf.metrics import Better, Metric, metric_named
from pytest_llamaperf.recording import commit_of, engine_version, pooled_spreads, tolerance_of
from pytest_llamaperf.records import Result, TestRecord
from pytest_llamaperf.runs import Run
from pytest_llamaperf.verdicts import Outcome
from pytest_llamaperf.wording import amount, change


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
        if current is None:
            raise _LeftOut("judged against a promise that does not stand here: see --baselines, or measure it again")
        now = f"{_told(current)} ({current.place})"
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
    if result.blind:
        raise _LeftOut("measured on GPUs that nobody watched")
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
