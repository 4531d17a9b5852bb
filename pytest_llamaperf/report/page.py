"""The page: what a run decided and why, its failures with how to repeat them, then every number and what it looks like."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources

from pytest_llamaperf.gates import told_beside
from pytest_llamaperf.metrics import ACCURACY
from pytest_llamaperf.observations import Observation, observations_of
from pytest_llamaperf.records import Result, TestRecord
from pytest_llamaperf.report import charts, past
from pytest_llamaperf.report.drawing import require
from pytest_llamaperf.report.rows import Mark, Row, rows_of
from pytest_llamaperf.report.visible import visible
from pytest_llamaperf.runs import Run
from pytest_llamaperf.verdicts import Outcome
from pytest_llamaperf.wording import amount, change, counted, interval

FAILED = (Outcome.REGRESSION, Outcome.ERROR)
UNPROVEN = (Outcome.INCONCLUSIVE, Outcome.SUSPECT, Outcome.NO_BASELINE)
# Outcomes with a sign of their own, because colours do not print.
SIGNS = {
    Outcome.PASS: "✓", Outcome.REGRESSION: "✗", Outcome.ERROR: "!", Outcome.INCONCLUSIVE: "?",
    Outcome.SUSPECT: "?", Outcome.NO_BASELINE: "∅",
}  # fmt: skip
_OPEN_AT_FIRST = 10  # failures, and reasons, before a reader has to ask for more


@dataclass(frozen=True)
class Failure:
    """What went wrong: of a result, or of a test that ended without one. `again` is a command, `evidence` a folder of the run."""

    title: str
    what: str
    outcome: str
    told: str
    row: Row | None
    again: str
    by_hand: str | None
    evidence: str | None

    @property
    def waived(self) -> bool:
        return self.row is not None and self.row.result.waiver is not None


def page(run: Run, known: Iterable[Observation] = ()) -> str:
    """`known` is what a history has of the cases of the run.

    Raises UsageError for results that this version did not write, or without the packages of the extra `report`."""
    require()
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    run = visible(run)
    rows = rows_of(run.results)
    pasts = past.pasts_of(observations_of(run), known)
    iterations = charts.iterations(rows)
    environment = Environment(
        loader=PackageLoader("pytest_llamaperf.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "amount": amount, "change": change, "interval": interval, "counted": counted, "Mark": Mark, "svg": Markup,
        "signs": SIGNS, "first": _OPEN_AT_FIRST, "kinds": charts.KINDS,
        "visible": visible, "told_steps": past.told, "first_and_last": past.first_and_last,
    }  # fmt: skip
    explained = _explained(rows)
    failures = _failures(run, rows)
    script = _file("page.js")
    return environment.get_template("page.html").render(
        run=run,
        rows=rows,
        style=Markup(_file("page.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        lasted=_lasted(run),
        beside=told_beside(run.decision, run.header.gpu, run.header.engine) if run.decision else (),
        counts=_counts(run.results),
        tests=Counter(test.outcome for test in run.tests),
        earlier=sum(test.session < run.header.sessions for test in run.tests),
        failures=failures,
        waived=sum(failure.waived for failure in failures),
        unproven=[row for row in rows if row.result.outcome in UNPROVEN],
        skips=_skips(test for test in run.tests if test.nodeid not in explained),
        several_gpus=len({row.hardware for row in rows}) > 1,
        intervals=any(row.low is not None and row.high is not None for row in rows),
        restarts=max((len(row.result.values) for row in rows if row.mark is Mark.MEASURED), default=0),
        marks=[mark for mark in Mark if any(mark in _marks(row) for row in rows)],
        value_marks=[mark for mark in Mark if any(row.mark is mark for row in rows)],
        promises=charts.against_promises(rows),
        curves=charts.curves(rows),
        speedups=charts.speedups(rows),
        iterations=iterations,
        operators=charts.operators(iterations),
        accuracy=[row for row in rows if row.paired or row.result.metric == ACCURACY.name],
        accuracies=charts.accuracies(rows),
        pasts=pasts,
        past_marks=[mark for mark in Mark if any(line.source == mark for one in pasts for line in one.lines)],
        past_figures=past.drawn(pasts),
        notes=Counter(note for row in rows for note in row.result.notes),
        versions=_variants(row.versions for row in rows),
        settings=_variants(row.settings for row in rows),
    )


def _failures(run: Run, rows: Sequence[Row]) -> list[Failure]:
    """Regressions, the largest first, then errors, then what broke in tests beside their results; what is waived comes last."""
    bad = [row for row in rows if row.result.outcome in FAILED]
    bad.sort(key=lambda row: (FAILED.index(Outcome(row.result.outcome)), charts.headroom(row)))
    kept = {test.nodeid: test.evidence for test in run.tests}
    of_results = [
        Failure(
            row.id, row.result.metric or "", row.result.outcome, _told(row.result), row,
            _again(run, row.result.nodeid), row.result.reproduce, kept.get(row.result.nodeid),
        )
        for row in bad
    ]  # fmt: skip
    of_tests = [
        Failure(
            test.case or test.nodeid, "", test.outcome, test.reason, None, _again(run, test.nodeid), None, test.evidence
        )
        for test in run.tests
        if test.broke
    ]
    return sorted(of_results + of_tests, key=lambda failure: failure.waived)


def _told(result: Result) -> str:
    return f"{result.message}; {result.waived}" if result.waived else result.message


def _explained(rows: Sequence[Row]) -> set[str]:
    """Tests of which a result says why they did not pass."""
    return {row.result.nodeid for row in rows if row.result.outcome != Outcome.PASS}


def _again(run: Run, nodeid: str) -> str:
    return shlex.join(["pytest", nodeid, "--gpu", run.header.gpu, "--engine", run.header.engine])


def _counts(results: Sequence[Result]) -> dict[str, Counter[str]]:
    """Outcome, worst first -> how many of each source; outcomes that only a newer version knows come last."""
    known = (*FAILED, *UNPROVEN, Outcome.PASS)
    found: dict[str, Counter[str]] = {outcome: Counter() for outcome in known}
    for result in results:
        found.setdefault(result.outcome, Counter())[result.source or "no value"] += 1
    return {outcome: sources for outcome, sources in found.items() if sources}


def _skips(tests: Iterable[TestRecord]) -> dict[str, list[TestRecord]]:
    found: dict[str, list[TestRecord]] = {}
    for test in tests:
        if test.outcome == "skipped":
            found.setdefault(test.reason or "no reason given", []).append(test)
    return found


def _marks(row: Row) -> set[Mark]:
    return {mark for mark in (row.mark, row.promise.mark if row.promise else None) if mark}


def _variants(fingerprints: Iterable[Mapping[str, str]]) -> dict[str, Counter[str]]:
    """Name -> every value with the number of results made with it."""
    found: dict[str, Counter[str]] = {}
    for fingerprint in fingerprints:
        for name, value in fingerprint.items():
            found.setdefault(name, Counter())[value] += 1
    return found


def _lasted(run: Run) -> float | None:
    """Seconds; None of a run that did not end, or does not say when."""
    if run.header.finished is None:
        return None
    try:
        return (
            datetime.fromisoformat(run.header.finished) - datetime.fromisoformat(run.header.started)
        ).total_seconds()
    except (TypeError, ValueError):
        return None


def _file(name: str) -> str:
    return resources.files("pytest_llamaperf.report").joinpath("templates", name).read_text(encoding="utf-8")
