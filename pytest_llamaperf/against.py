"""A build against another one: both measured in this session, in turn on the same machine, and told apart by `detection`.

What is measured first is screened; engines whose cases are suspects are started fresh in pairs of both builds until it is
known, by the rule of `detection/rule.py`. All cases take part: what noise is usual is learned from all of them together.
"""

from __future__ import annotations

import math
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import geometric_mean

from pytest_llamaperf.cases import Case, Runtime
from pytest_llamaperf.detection.confirming import Confirmation
from pytest_llamaperf.detection.deciding import CellVerdict, Decision, decide
from pytest_llamaperf.detection.orders import Restart
from pytest_llamaperf.detection.readings import Cell, Readings, Side, refuse_unlike
from pytest_llamaperf.detection.rule import Rule
from pytest_llamaperf.detection.screening import screen
from pytest_llamaperf.engines import EngineSpec
from pytest_llamaperf.errors import EngineError, LlamaperfError, UsageError
from pytest_llamaperf.fingerprints import ENVIRONMENT, Meaning, Part, field_of
from pytest_llamaperf.hosting.failures import EngineFailure, FailureKind
from pytest_llamaperf.journal import Journal, Measure, Measured
from pytest_llamaperf.measurements import Fingerprint, Measurement, Source
from pytest_llamaperf.measuring import workload_of
from pytest_llamaperf.metrics import (
    OUTPUT_THROUGHPUT,
    PEAK_MEMORY,
    REQUEST_LATENCY_MEDIAN,
    TPOT_MEDIAN,
    TPOT_P99,
    TTFT_MEDIAN,
    TTFT_P99,
    Better,
    Metric,
)
from pytest_llamaperf.records import Result
from pytest_llamaperf.verdicts import Outcome
from pytest_llamaperf.wording import amount, counted

# The other build was measured beside this one, so it cannot be out of date: however many cells look slower, all are suspects.
FRESH = Rule(capped=1.0)

# What is compared of every case that gives it: each once, for throughput per GPU loses what throughput loses.
COMPARED = (OUTPUT_THROUGHPUT, TTFT_MEDIAN, TTFT_P99, TPOT_MEDIAN, TPOT_P99, REQUEST_LATENCY_MEDIAN, PEAK_MEMORY)

# How often a restart is tried on a machine that was not fit to measure on.
TRIES = 3


@dataclass(frozen=True)
class Comparison:
    """What came of a session: `failed` are cases that could not be measured, or not alike, on both sides.

    `unstable` are engines whose suspects could not be confirmed because the machine was not fit to measure on.
    """

    decision: Decision | None
    verdicts: Mapping[tuple[str, str], CellVerdict] = field(default_factory=dict)
    measured: Mapping[Case, Measurement] = field(default_factory=dict)
    others: Mapping[Case, Measurement] = field(default_factory=dict)
    failed: Mapping[Case, LlamaperfError] = field(default_factory=dict)
    unstable: Mapping[str, LlamaperfError] = field(default_factory=dict)


@dataclass(frozen=True)
class Rivalry:
    """A verdict on one metric of one case, with what both builds gave at first."""

    found: CellVerdict
    ours: Measurement
    theirs: Measurement
    metric: Metric

    @property
    def outcome(self) -> Outcome:
        return self.found.outcome

    @property
    def reason(self) -> str:
        return self.found.reason

    @property
    def blind(self) -> str | None:
        """Why nobody saw the GPUs of either build, if that is so."""
        return next((side.health.blind for side in (self.ours, self.theirs) if side.health and side.health.blind), None)

    def __str__(self) -> str:
        """The failure as a person reads it: what was lost, both builds, what to do."""
        told = {
            "found": self.reason,
            **{name: self._told(side) for name, side in (("this build", self.ours), ("the other", self.theirs))},
            "to do": _ADVICE.get(self.outcome, "nothing"),
        }
        if self.ours.reproduce:
            told["by hand"] = self.ours.reproduce.replace("\n", f"\n{'':15}")
        lines = [f"    {name:<10} {text}" for name, text in told.items()]
        return "\n".join([f"{self.ours.case}", f"  {self.metric}: {self.outcome}", *lines])

    def result(self, nodeid: str) -> Result:
        """`low` and `high` are the other build's mean with the interval of the change; the tolerance is what is allowed."""
        ours, theirs = (side.of(self.metric) for side in (self.ours, self.theirs))
        worse = -1.0 if self.metric.better is Better.HIGHER else 1.0
        low, high = sorted(theirs.value * (1 + worse * end) for end in (self.found.low, self.found.high))
        return Result(
            nodeid,
            self.ours.case.to_dict(),
            self.metric.name,
            self.metric.unit,
            self.metric.better.value,
            Source.MEASURED.value,
            ours.values,
            ours.value,
            low,
            high,
            {
                "value": theirs.value,
                "tolerance": self.found.allowance.allowed,
                "source": Source.MEASURED.value,
                "reference": f"{self.theirs.case}, measured in turn",
            },
            self.outcome.value,
            self.reason,
            self.ours.notes,
            self.ours.fingerprint.to_dict(),
            self.ours.reproduce,
        )

    def _told(self, side: Measurement) -> str:
        summary = side.of(self.metric)
        versions = ", ".join(f"{name} {version}" for name, version in sorted(side.fingerprint.versions.items()))
        return f"{amount(summary.value, self.metric.unit)} in {counted(len(summary.values), 'restart')}: {versions}"


_ADVICE = {
    Outcome.REGRESSION: "find the change between the two builds that cost this; --against a build between them halves the search",
    Outcome.INCONCLUSIVE: "measure on a quieter machine, or with more --restarts",
}


class Against:
    """Cases under this build and under `runtime`.

    `measure` measures cases of both builds in the order given and in turn; with a `journal`, what it kept is not measured
    again. `allowed` are settings in which the two may differ, by name. `side_by_side`: restarts of one number are open together and
    take turns round by round, so what disturbs one disturbs both.
    """

    def __init__(
        self,
        runtime: Runtime,
        measure: Measure,
        *,
        restarts: int,
        side_by_side: bool,
        allowed: Sequence[str] = (),
        rule: Rule = FRESH,
        tell: Callable[[str], None] = lambda text: None,
        journal: Journal | None = None,
    ) -> None:
        self.runtime = runtime
        self._measure = measure if journal is None else journal.through(measure)
        self._restarts, self._allowed, self._rule, self._tell = restarts, allowed, rule, tell
        self._side_by_side, self._journal = side_by_side, journal
        self._cases: dict[Case, None] = {}
        self._opened_as: dict[Case, Fingerprint] = {}

    def expect(self, cases: Sequence[Case]) -> None:
        """Raises UsageError for a case that cannot be measured."""
        for case in cases:
            workload_of(case)
        self._cases |= dict.fromkeys(cases)

    def __contains__(self, case: Case) -> bool:
        """Whether it was known before the first test ran, and so is measured in turn."""
        return case in self._cases

    def measurement(self, case: Case) -> Measurement:
        """Of this build. Raises EngineError for a case that could not be measured on both sides."""
        if problem := self.comparison.failed.get(case):
            raise problem
        if case not in self.comparison.measured:
            raise UsageError(
                f"{case}: was not known before the first test ran, so it was not measured in turn; name it in a marker"
            )
        return self.comparison.measured[case]

    def verdict(self, case: Case, metric: Metric) -> Rivalry:
        """On one metric. Raises UsageError for one that is not compared, EngineError as `measurement` does."""
        ours = self.measurement(case)
        found = self.comparison.verdicts.get((case.id, metric.name))
        if found is None:
            known = ", ".join(map(str, COMPARED))
            raise UsageError(
                f"{case}: --against compares {known}; {metric} is none of them, or this case does not give it"
            )
        problem = self.comparison.unstable.get(_engine(case))
        if problem is not None and found.outcome is Outcome.INCONCLUSIVE:
            raise problem
        return Rivalry(found, ours, self.comparison.others[case], metric)

    def lost(self) -> tuple[tuple[str, str], ...]:
        """Case and metric of every loss that is proven, whether or not a test asked about it."""
        if "comparison" not in vars(self) or self.comparison.decision is None:
            return ()
        found = self.comparison.decision.having(Outcome.REGRESSION)
        return tuple((verdict.cell.case, verdict.cell.metric.name) for verdict in found)

    @property
    def summary(self) -> str:
        """One line for all, once anything was measured."""
        if "comparison" not in vars(self):
            return ""
        decision = self.comparison.decision
        if decision is None:
            return f"against {self.runtime}: nothing could be compared"
        told = f"against {self.runtime}: {decision.reason}; {counted(decision.restarts, 'restart')} on top of the first ones"
        if self._journal and self._journal.answered:
            told += f"; {counted(self._journal.answered, 'step')} kept from before"
        if self._journal and self._journal.problem:
            told += f"; {self._journal.problem}"
        return f"{told}; {decision.stale}" if decision.stale else told

    @cached_property
    def comparison(self) -> Comparison:
        """Everything is measured when it is first asked for."""
        found: dict[Case, Measurement | LlamaperfError] = {}
        for cases in _by_engine(self._cases).values():
            found |= self._measure([each for case in cases for each in self._both(case)], self._restarts)
        measured: dict[Case, Measurement] = {}
        others: dict[Case, Measurement] = {}
        failed: dict[Case, LlamaperfError] = {}
        for case in self._cases:
            ours, theirs = (found[each] for each in self._both(case)[::-1])
            if isinstance(ours, LlamaperfError):
                failed[case] = ours
            elif isinstance(theirs, LlamaperfError):
                failed[case] = EngineError(f"{case}: nothing to compare with: {theirs}")
            elif problem := _difference(case, ours, theirs, (*self._allowed, *_meant(self.runtime))):
                failed[case] = problem
            else:
                measured[case], others[case] = ours, theirs
                self._opened_as |= {each.case: each.fingerprint for each in (ours, theirs)}
        if not measured:
            self._finish()
            return Comparison(None, failed=failed)
        before, after = _readings(others), _readings(measured)
        if self._side_by_side:
            before, after = _without_what_is_shared(before, after)
        screening = screen(before, after, rule=self._rule, against=str(self.runtime))
        confirmation, unstable = self._confirmed(Confirmation(screening), tuple(measured))
        decision = decide(confirmation)
        self._finish()
        verdicts = {(verdict.cell.case, verdict.cell.metric.name): verdict for verdict in decision.verdicts}
        return Comparison(decision, verdicts, measured, others, failed, unstable)

    def end(self) -> None:
        """The session told all: its journal is of the past, and no other build's results."""
        if self._journal and "comparison" in vars(self):
            self._journal.end()

    def _finish(self) -> None:
        if self._journal:
            self._journal.finish()

    def _confirmed(
        self, confirmation: Confirmation, cases: Sequence[Case]
    ) -> tuple[Confirmation, dict[str, LlamaperfError]]:
        """With the engines for which the machine was not fit."""
        engines = _by_engine(cases)
        unstable: dict[str, LlamaperfError] = {}
        while orders := confirmation.orders:
            for order in orders:
                self._tell(f"confirming {order.engine}")
                for sides in _turns(order.sides):
                    try:
                        made = self._restart(engines[order.engine], sides)
                        confirmation = confirmation.with_restarts(*made)
                    except LlamaperfError as problem:
                        if _not_fit(problem):
                            unstable[order.engine] = problem
                        confirmation = confirmation.without(order.engine, f"a fresh restart failed: {problem}")
                        break
        return confirmation, unstable

    def _restart(self, cases: Sequence[Case], sides: Sequence[Side]) -> list[Restart]:
        """One fresh restart of each side, in that order. Raises EngineError when one of them fails."""
        by_side = {
            side: [case.under(self.runtime if side is Side.BASELINE else None) for case in cases] for side in sides
        }
        wanted = [case for side in sides for case in by_side[side]]
        for last in (*[False] * (TRIES - 1), True):
            found = self._measure(wanted, 1)
            problems = [problem for problem in found.values() if isinstance(problem, LlamaperfError)]
            if last or not any(map(_not_fit, problems)):
                break
        for problem in problems:
            raise problem
        self._refuse_other(found)
        _refuse_blind(found)
        return [
            Restart(
                _engine(cases[0]),
                side,
                {
                    cell: values[0]
                    for case in by_side[side]
                    if isinstance(measurement := found[case], Measurement)
                    for cell, values in _cells(case.under(None), measurement).items()
                },
            )
            for side in sides
        ]

    def _refuse_other(self, found: Measured) -> None:
        """Raises EngineError where a fresh restart is of something else than the first ones were."""
        for case, made in found.items():
            if not isinstance(made, Measurement):
                continue
            if unlike := _unlike(_whole(made.fingerprint), _whole(self._opened_as[case])):
                told = "; ".join(f"{name} is {now!r} and was {then!r}" for name, now, then in unlike)
                raise EngineError(f"{case}: this restart is not of what its first ones were: {told}")

    def _both(self, case: Case) -> tuple[Case, Case]:
        """The other build goes first, as in every first pair."""
        return case.under(self.runtime), case


def _engine(case: Case) -> str:
    return str(EngineSpec.of(case.under(None)))


def _by_engine(cases: Iterable[Case]) -> dict[str, list[Case]]:
    engines: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        engines[_engine(case)].append(case)
    return engines


def _refuse_blind(found: Measured) -> None:
    """Raises EngineError: what settles a suspicion has been seen."""
    for case, made in found.items():
        if isinstance(made, Measurement) and made.health and made.health.blind:
            raise EngineError(f"{case}: the GPUs were not watched: {made.health.blind}")


def _not_fit(problem: LlamaperfError) -> bool:
    return isinstance(problem, EngineFailure) and problem.kind is FailureKind.UNSTABLE


def _cells(case: Case, measurement: Measurement) -> dict[Cell, tuple[float, ...]]:
    return {
        Cell(_engine(case), case.id, metric): values
        for metric in COMPARED
        if (values := measurement.samples.get(metric))
    }


def _readings(measured: Mapping[Case, Measurement]) -> Readings:
    return {cell: values for case, found in measured.items() for cell, values in _cells(case, found).items()}


def _without_what_is_shared(theirs: Readings, ours: Readings) -> tuple[Readings, Readings]:
    """Readings with the same means, spread by what restarts of one number do not have in common.

    The logarithm of a ratio has a variance of its own, of which each side gets half: the screen, which takes sides for
    independent, then has the variance of the ratio for their difference.
    """
    refuse_unlike(theirs, ours, dict.fromkeys(Side, 1))
    alone: dict[Cell, Sequence[float]] = {}
    others: dict[Cell, Sequence[float]] = {}
    for cell, values in ours.items():
        before = theirs[cell]
        ratios = [math.log(a / b) for a, b in zip(values, before, strict=True)]
        half = [(ratio - math.fsum(ratios) / len(ratios)) / math.sqrt(2) for ratio in ratios]
        alone[cell] = [geometric_mean(values) * math.exp(share) for share in half]
        others[cell] = [geometric_mean(before) * math.exp(-share) for share in half]
    return others, alone


def _turns(sides: Sequence[Side]) -> list[tuple[Side, ...]]:
    """Pairs of two builds, which a CPU can have open together; what has no partner beside it is started alone."""
    turns: list[tuple[Side, ...]] = []
    rest = list(sides)
    while rest:
        size = 2 if len(rest) > 1 and rest[0] is not rest[1] else 1
        turns.append(tuple(rest[:size]))
        del rest[:size]
    return turns


def _difference(case: Case, ours: Measurement, theirs: Measurement, allowed: Sequence[str]) -> EngineError | None:
    """Of settings: another runtime has other versions, and is to have nothing else."""
    if {ours.source, theirs.source} != {Source.MEASURED}:
        return EngineError(f"{case}: --against compares measurements, and one side is none")
    unlike = [
        (name, mine, other)
        for name, mine, other in _unlike(ours.fingerprint.settings, theirs.fingerprint.settings)
        if name not in allowed and _matters(name)
    ]
    if not unlike:
        return None
    told = "; ".join(f"{name} is {mine!r} here and {other!r} there" for name, mine, other in unlike)
    options = " ".join(f"--allow-difference {shlex.quote(name)}" for name, *_ in unlike)
    return EngineError(f"{case}: the two builds were not run alike: {told}; if that is meant, {options}")


def _meant(runtime: Runtime) -> Iterable[str]:
    """Settings that are to differ: variables that the other environment is given by name."""
    return (f"{ENVIRONMENT}{name}" for name, _ in runtime.environment)


def _matters(setting: str) -> bool:
    return field_of(Part.SETTINGS, setting).meaning is Meaning.MATCH


def _whole(fingerprint: Fingerprint) -> Mapping[str, object]:
    """What is the same in every restart of one build."""
    settings = {name: value for name, value in fingerprint.settings.items() if _matters(name)}
    return settings | {f"version of {name}": version for name, version in fingerprint.versions.items()}


def _unlike(ours: Mapping[str, object], theirs: Mapping[str, object]) -> list[tuple[str, object, object]]:
    """Names of what differs, with both values; None where one side does not say."""
    names = sorted(ours.keys() | theirs.keys())
    return [(name, ours.get(name), theirs.get(name)) for name in names if ours.get(name) != theirs.get(name)]
