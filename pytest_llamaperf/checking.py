"""What the fixtures hand to a test: measure, predict, check. Errors become short failures, never tracebacks of ours."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

import pytest

from pytest_llamaperf.acceptance import Acceptance
from pytest_llamaperf.accuracy.scores import Scores
from pytest_llamaperf.bench import Bench
from pytest_llamaperf.benchmarking import play_back
from pytest_llamaperf.cases import Case
from pytest_llamaperf.collecting import CASE, compared_with
from pytest_llamaperf.engines import PREDICTED, Engine, EngineSpec
from pytest_llamaperf.errors import EngineError, LlamaperfError, Unsupported
from pytest_llamaperf.measurements import Measurement, Source
from pytest_llamaperf.measuring import Sampling
from pytest_llamaperf.metrics import Metric
from pytest_llamaperf.records import Result
from pytest_llamaperf.runs import to_json
from pytest_llamaperf.verdicts import Outcome, Verdict

if TYPE_CHECKING:
    from pytest_llamaperf.against import Rivalry
    from pytest_llamaperf.checkpoints import Checkpoint

# The user property under which results travel: over pytest-xdist to the process that reports, and into JUnit.
PROPERTY = "llamaperf"
MEASURES = "llamaperf_measures"
_WAIVED_BY = "llamaperf_waived"

# What a test would have failed by, but for waivers: in a line, and in full.
_WAIVED = pytest.StashKey[list[tuple[str, str]]]()

T = TypeVar("T")


class Measure:
    """`measure(case)`: see the fixture."""

    def __init__(self, acceptance: Acceptance, request: pytest.FixtureRequest) -> None:
        self._acceptance, self._request = acceptance, request
        # What is measured has to be judged, or the gate will ask why it was measured.
        request.node.user_properties.append((MEASURES, True))

    def __call__(self, case: Case) -> Measurement:
        __tracebackhide__ = True
        measurement = _or_fail(self._request.node, case, lambda: self._acceptance.measure(case))
        if measurement.source is Source.MEASURED:
            play_back(self._request, measurement)
        return measurement


class Ask(Generic[T]):
    """`answers(case)`, `repeats(case)`, `look(case)` and `evaluate(case)`: see the fixtures."""

    def __init__(self, item: pytest.Item, ask: Callable[[Case], T]) -> None:
        self._item, self._ask = item, ask

    def __call__(self, case: Case) -> T:
        __tracebackhide__ = True
        return _or_fail(self._item, case, lambda: self._ask(case))


def evaluating(acceptance: Acceptance, item: pytest.Item) -> Ask[Scores]:
    """What is scored has to be compared, or the gate will ask why it was scored."""
    item.user_properties.append((MEASURES, True))
    return Ask(item, acceptance.scores)


class AccuracyCheck:
    """`accuracy.check(scores, other)` and `accuracy.reaches(scores)`: see the fixture."""

    def __init__(self, acceptance: Acceptance, item: pytest.Item) -> None:
        self._acceptance, self._item = acceptance, item

    def check(self, candidate: Scores, other: Case) -> None:
        """Judge by the margin of the task, and fail or skip the test by it.

        Without --gate a loss beyond the margin fails and what cannot be told skips. With it, both fail.
        """
        __tracebackhide__ = True
        judgement = _or_fail(self._item, candidate.case, lambda: self._acceptance.judge_accuracy(candidate, other))
        _conclude(self._acceptance, self._item, candidate.case, [judgement.result(self._item.nodeid)], str(judgement))

    def reaches(self, candidate: Scores) -> None:
        """Judge by the targets that others set for the task, all of them, and fail the test if one is missed."""
        __tracebackhide__ = True
        from pytest_llamaperf.accuracy.reaching import reached, told

        found = _or_fail(self._item, candidate.case, lambda: reached(candidate))
        results = [one.result(self._item.nodeid) for one in found]
        _conclude(self._acceptance, self._item, candidate.case, results, told(found))


class Predict:
    """`predict(case)`: see the fixture."""

    def __init__(self, acceptance: Acceptance, item: pytest.Item) -> None:
        self._opener, self._item = acceptance.openers[PREDICTED], item

    def __call__(self, case: Case) -> Measurement:
        __tracebackhide__ = True
        once = Sampling(restarts=1, rounds=1)
        return _or_fail(self._item, case, lambda: Bench(self._opener, once, together=False).measurement(case))


class BaselineCheck:
    """Promises of the run, asked about one test's measurements."""

    def __init__(self, acceptance: Acceptance, item: pytest.Item) -> None:
        self._acceptance, self._item = acceptance, item

    def check(self, measurement: Measurement, *metrics: Metric) -> None:
        """Judge every metric, then fail with all that is wrong at once; or skip, saying what is missing.

        Without --gate a broken promise fails, and a missing or inconclusive one skips. With it, both fail.
        """
        __tracebackhide__ = True
        if not metrics:
            pytest.fail("baseline.check needs a metric, as in baseline.check(run, OUTPUT_THROUGHPUT)", pytrace=False)
        verdicts = _or_fail(
            self._item, measurement.case, lambda: [self._acceptance.judge(measurement, metric) for metric in metrics]
        )
        nodeid = self._item.nodeid
        results = [
            dataclasses.replace(
                Result.of_verdict(nodeid, verdict) if isinstance(verdict, Verdict) else verdict.result(nodeid),
                metrics=measurement.values,
                health=_health(measurement, verdict),
            )
            for verdict in verdicts
        ]
        told = "\n\n".join(self._told(v) for v in verdicts if v.outcome is not Outcome.PASS)
        _conclude(self._acceptance, self._item, measurement.case, results, told)

    def _told(self, verdict: Verdict | Rivalry) -> str:
        """With the YAML that would turn a measured value without a promise into one."""
        if isinstance(verdict, Verdict) and verdict.outcome is Outcome.NO_BASELINE and self._acceptance.measures:
            return f"{verdict}\n{self._acceptance.yaml_hint(verdict)}"
        return str(verdict)


def _health(measurement: Measurement, verdict: Verdict | Rivalry) -> Mapping[str, Any]:
    """Of what was judged: of two builds, whether either was measured blind."""
    if measurement.health is None:
        return {}
    if isinstance(verdict, Verdict):
        return measurement.health.to_dict()
    return dataclasses.replace(measurement.health, blind=verdict.blind).to_dict()


@contextlib.contextmanager
def opened_engine(acceptance: Acceptance, item: pytest.Item, case: Case) -> Iterator[Engine]:
    """An open engine for the case, closed whatever becomes of the test."""
    opening = acceptance.opened(EngineSpec.of(case))
    engine = _or_fail(item, case, opening.__enter__)
    try:
        yield engine
    finally:
        _or_fail(item, case, lambda: opening.__exit__(None, None, None))


def checkpoint_of(acceptance: Acceptance, item: pytest.Item, case: Case) -> Checkpoint:
    """The checkpoint of the case's model and recipe, made if it has to be."""
    __tracebackhide__ = True
    from pytest_llamaperf.checkpoints import CheckpointStore

    surroundings = acceptance.surroundings
    store = CheckpointStore(
        deadlines=surroundings.deadlines,
        on_progress=lambda progress: surroundings.on_progress(progress.text, progress.done, progress.total),
        logs=surroundings.logs,
    )
    return _or_fail(item, case, lambda: store.get(case.model, case.recipe))


def other_of(item: pytest.Item, case: Case) -> Case:
    """The case a test compares with. Fails the test that has not exactly one marker `versus`."""
    __tracebackhide__ = True
    others = _or_fail(item, case, lambda: compared_with(item, case))
    if len(others) != 1:
        pytest.fail(f"the fixture `other` needs one @pytest.mark.versus(...), found {len(others)}", pytrace=False)
    return others[0]


def tell(item: pytest.Item, case: Case, problem: LlamaperfError) -> NoReturn:
    """End the test with the message alone: what an engine cannot do skips it, and anything else fails it."""
    __tracebackhide__ = True
    told = str(problem).removeprefix(f"{case}: ")
    if isinstance(problem, Unsupported):
        pytest.skip(f"{case}\n  not supported: {told}")
    if isinstance(problem, EngineError):
        _attach(item, Result.of_error(item.nodeid, case.to_dict(), str(problem)))
        pytest.fail(f"{case}\n  error, not a regression: {told}", pytrace=False)
    pytest.fail(str(problem), pytrace=False)


def start_over(item: pytest.Item) -> None:
    """Forget what an earlier attempt at a test judged."""
    item.user_properties[:] = [(name, value) for name, value in item.user_properties if name != PROPERTY]
    item.stash[_WAIVED] = []


def end_as_waived(item: pytest.Item, report: pytest.TestReport) -> pytest.TestReport:
    """A test that would have failed by waived regressions alone has not passed, and fails as expected.

    It ends only now, so that a waiver cuts off nothing else that the test asserts.
    """
    if report.when == "setup" and report.passed:
        return report
    waived, item.stash[_WAIVED] = item.stash.get(_WAIVED, []), []
    if waived and report.passed:
        told = "; ".join(line for line, _ in waived)
        report.outcome, report.wasxfail = "skipped", told
        report.longrepr = "\n\n".join(dict.fromkeys(full for _, full in waived))
        report.user_properties.append((_WAIVED_BY, told))
    return report


def waived_by(report: pytest.TestReport) -> str:
    """Under which waivers a test failed as expected, empty where it did not."""
    return next((str(value) for name, value in report.user_properties if name == _WAIVED_BY), "")


def measures_of_report(report: pytest.TestReport) -> bool:
    """Whether a test asks for measurements."""
    return any(name == MEASURES for name, _ in report.user_properties)


def case_of_report(report: pytest.TestReport) -> str | None:
    """The id of the case a test is about, wherever it ran."""
    return next((str(value) for name, value in report.user_properties if name == CASE), None)


def results_of(report: pytest.TestReport) -> tuple[Result, ...]:
    """What a finished test reported, wherever it ran."""
    return tuple(Result.from_dict(json.loads(str(text))) for name, text in report.user_properties if name == PROPERTY)


def _conclude(acceptance: Acceptance, item: pytest.Item, case: Case, results: Sequence[Result], told: str) -> None:
    """Keep what was judged, then fail or skip the test by it; where all that is wrong is waived, the test goes on."""
    __tracebackhide__ = True
    results = _or_fail(item, case, lambda: [acceptance.waived(result) for result in results])
    for result in results:
        _attach(item, result)
    wrong = [result for result in results if result.outcome != Outcome.PASS and not result.waiver]
    if not wrong:
        lines = [f"{result.metric} {result.waived}" for result in results if result.waiver]
        item.stash.setdefault(_WAIVED, []).extend((line, told) for line in lines)
        return
    objections = [f"    waiver     {problem}" for result in wrong if (problem := acceptance.objection(result))]
    told = "\n".join([told, *objections])
    if any(acceptance.blocks(Outcome(result.outcome)) for result in wrong):
        pytest.fail(told, pytrace=False)
    pytest.skip(told)


def _attach(item: pytest.Item, result: Result) -> None:
    waived = f" ({result.waived})" if result.waiver else ""
    item.user_properties.append((result.metric or "error", f"{result.outcome}: {result.message}{waived}"))
    item.user_properties.append((PROPERTY, to_json(result.to_dict())))


def _or_fail(item: pytest.Item, case: Case, work: Callable[[], T]) -> T:
    __tracebackhide__ = True
    try:
        return work()
    except LlamaperfError as problem:
        found = problem
    # Outside the handler, so that pytest does not show two exceptions where there is one mistake.
    tell(item, case, found)
