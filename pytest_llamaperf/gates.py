"""May this build be released? Only measured passes say yes; everything else is a reason against."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pytest_llamaperf.measurements import Source
from pytest_llamaperf.records import Result, TestRecord
from pytest_llamaperf.verdicts import Outcome
from pytest_llamaperf.wording import counted


@dataclass(frozen=True)
class Decision:
    """Releasable exactly when there is no reason against it."""

    reasons: tuple[str, ...]

    @property
    def releasable(self) -> bool:
        return not self.reasons


def decide(tests: Sequence[TestRecord], *, not_run: int = 0, deselected: int = 0) -> Decision:
    """Fails closed: no results, a skipped test and a prediction are reasons as good as a regression.

    `not_run` counts tests that were collected but never ran, after Ctrl-C or --maxfail; `deselected` those about a
    case that -k, -m or --deselect left out.
    """
    results = [result for test in tests for result in test.results]
    reasons: list[str] = []
    if not results:
        reasons.append("nothing was judged")
    if not_run:
        reasons.append(f"not run: {counted(not_run, 'test')}")
    if deselected:
        reasons.append(f"deselected: {counted(deselected, 'test')}")
    reasons += _outcomes(results)
    judged = Counter(result.source for result in results if result.outcome != Outcome.ERROR)
    reasons += [
        f"{source or 'of unknown source'}, not measured: {counted(count, 'result')}"
        for source, count in judged.items()
        if source != Source.MEASURED
    ]
    judged_badly = {r.nodeid for r in results if r.outcome != Outcome.PASS}
    for test in tests:
        if test.outcome == "passed":
            if test.measures and not test.results:
                reasons.append(f"judged nothing: {test.nodeid}: it measures and checks no promise")
            if test.attempts > 1:
                reasons.append(f"retried: {test.nodeid}: passed at attempt {test.attempts}")
        elif test.outcome != "skipped" and test.nodeid not in judged_badly:
            reasons.append(f"{test.outcome}: {test.nodeid}{': ' + test.reason if test.reason else ''}")
    reasons += _skips(test for test in tests if test.outcome == "skipped" and test.nodeid not in judged_badly)
    return Decision(tuple(reasons))


_WORST_FIRST = (
    Outcome.REGRESSION,
    Outcome.ERROR,
    Outcome.INCONCLUSIVE,
    Outcome.SUSPECT,
    Outcome.NO_BASELINE,
    Outcome.PASS,
)


def _outcomes(results: Iterable[Result]) -> list[str]:
    """One reason for each result that is not a pass, also for an outcome that only a newer version knows."""
    by_outcome: dict[str, list[str]] = {outcome: [] for outcome in _WORST_FIRST}
    for result in results:
        what = f"{result.case['id']} {result.metric}" if result.metric else str(result.case["id"])
        by_outcome.setdefault(result.outcome, []).append(what)
    del by_outcome[Outcome.PASS]
    return [f"{outcome or 'without outcome'}: {what}" for outcome, found in by_outcome.items() for what in found]


def _skips(tests: Iterable[TestRecord]) -> list[str]:
    """One reason for all tests skipped alike, for a cause such as a missing GPU skips them by the dozen."""
    causes = Counter(test.reason for test in tests)
    return [f"skipped: {counted(count, 'test')}: {cause or 'no reason given'}" for cause, count in causes.items()]
