"""The test bench: every engine is opened once for each restart, whatever order tests ask in.

What tests will ask is known after collection (`expect`). Cases that a test compares belong to one group with the
engines that serve them. The first question about a group answers all of it:

    for each restart: open the group's engines; ask for answers, the first time; measure every workload,
    a round of each engine in turn, so that what disturbs one disturbs all; close the engines

On a CPU the engines of a group are open together and take turns round by round. A GPU holds one engine at a time; there
they take turns restart by restart, A B B A.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self, TypeVar

from pytest_llamaperf.account import Activity, Holding, Ledger
from pytest_llamaperf.answers import answers_of
from pytest_llamaperf.cases import Case
from pytest_llamaperf.engines import Engine, EngineSpec, FreshEngine, Opener
from pytest_llamaperf.errors import EngineError, LlamaperfError, Unsupported
from pytest_llamaperf.hosting.failures import EngineFailure
from pytest_llamaperf.measurements import Measurement, Source
from pytest_llamaperf.measuring import Rounds, Sampling, errors_named, measurement, workload_of

T = TypeVar("T")

# What an open engine says to the questions of a case; raises EngineError.
Ask = Callable[[Case, Engine], object]

# Whether the machine is this session's, and what it was; raises EngineError where it is not.
Steady = Callable[[], None]

# Closes an engine, and sees that it gives everything back: raises EngineError where it does not, and returns why nobody can
# tell, if that is so.
Closer = Callable[[Engine], str | None]

# What is under way, how much of it is done, and how much there is in all.
OnProgress = Callable[[str, int, int | None], None]


@dataclass
class _Job:
    """All that is expected of one engine, and what came of it so far."""

    spec: EngineSpec
    cases: list[Case] = field(default_factory=list)
    questions: list[Case] = field(default_factory=list)
    restarts: dict[Case, list[Rounds]] = field(default_factory=dict)
    sources: set[Source] = field(default_factory=set)
    failed: dict[Case, LlamaperfError] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    spoilt: dict[Case, LlamaperfError] = field(default_factory=dict)

    def wants(self, restart: int) -> bool:
        """Whether the engine has to be opened for this restart: answers are asked for at the first only."""
        return bool(self.measurable()) or (restart == 0 and bool(self.questions))

    def measurable(self) -> list[Case]:
        return [case for case in self.cases if case not in self.failed]

    def fail(self, cases: Iterable[Case], problem: LlamaperfError) -> None:
        for case in cases:
            self.failed.setdefault(case, problem)

    def fail_all(self, problem: LlamaperfError) -> None:
        self.fail([*self.cases, *self.questions], problem)


def _close(engine: Engine) -> None:
    engine.close()


class Bench:
    """Measures and asks, once in a session for each case.

    `together`: whether a group's engines may be open at once; `steady` is called before and after every restart; `ledger`
    is told how long engines were open, and for what.
    """

    def __init__(
        self,
        opener: Opener,
        sampling: Sampling,
        *,
        together: bool,
        ask: Ask = answers_of,
        on_progress: OnProgress | None = None,
        steady: Steady = lambda: None,
        closer: Closer = _close,
        ledger: Ledger | None = None,
    ) -> None:
        self._opener, self._closer, self._ledger = opener, closer, ledger or Ledger()
        self._sampling, self._together, self._ask_engine = sampling, together, ask
        self._steady = steady
        self._on_progress = on_progress or (lambda text, done, total: None)
        self._groups: dict[EngineSpec, dict[EngineSpec, _Job]] = {}
        self._measured: dict[Case, Measurement | LlamaperfError] = {}
        self._answered: dict[Case, object] = {}
        self._done = self._total = 0

    def expect(self, *, measured: Sequence[Case] = (), answered: Sequence[Case] = ()) -> None:
        """What one test will want: its cases form a group, with all they are compared with elsewhere.

        Raises UsageError for a case that cannot be measured.
        """
        for case in measured:
            workload_of(case)
        jobs: dict[EngineSpec, _Job] = {}
        for case in (*measured, *answered):
            spec = EngineSpec.of(case)
            jobs |= self._groups.get(spec) or {spec: _Job(spec)}
        for case in measured:
            self._add(jobs[EngineSpec.of(case)].cases, case)
        for case in answered:
            self._add(jobs[EngineSpec.of(case)].questions, case)
        for spec in jobs:
            self._groups[spec] = jobs

    def measurement(self, case: Case) -> Measurement:
        """Raises EngineError when the case could not be measured, each time it is asked for: it is not tried again."""
        if case not in self._measured:
            self.expect(measured=[case])
            self._run(self._groups[EngineSpec.of(case)])
        return _value(self._measured[case])

    def answers(self, case: Case) -> object:
        """What `ask` made of the case's engine. Raises EngineError when it could not be asked."""
        if case not in self._answered:
            self.expect(answered=[case])
            self._run(self._groups[EngineSpec.of(case)])
        return _value(self._answered[case])

    def _add(self, cases: list[Case], case: Case) -> None:
        if case not in cases and case not in self._measured and case not in self._answered:
            cases.append(case)

    def _run(self, jobs: dict[EngineSpec, _Job]) -> None:
        """Everything still open of a group. What it comes to is remembered, whatever it is."""
        group = list(jobs.values())
        for spec in jobs:  # what is asked later starts a group of its own
            del self._groups[spec]
        self._done = 0
        self._total = self._sampling.restarts * (self._sampling.rounds + 1) * sum(len(job.cases) for job in group)
        for restart in range(self._sampling.restarts):
            batches = self._batches([job for job in group if job.wants(restart)])
            # Forwards and backwards, as rounds are: what drifts disturbs the first engine no more than the last, and of
            # two engines open together the second one is some 4 % faster on a CPU (benchmarks/README.md).
            for batch in batches[::-1] if restart % 2 else batches:
                self._restart(batch[::-1] if restart % 2 else batch, restart)
            if any(Source.PREDICTED in job.sources for job in group):
                break  # it would repeat to the bit
        for job in group:
            for case in job.cases:
                self._measured[case] = job.failed.get(case) or _assembled(job, case)
            for case in job.questions:
                if case in job.spoilt:
                    self._answered[case] = job.spoilt[case]
                self._answered.setdefault(case, job.failed.get(case) or EngineError(f"{case}: was not asked"))

    def _batches(self, jobs: Sequence[_Job]) -> list[list[_Job]]:
        """Engines that are open together: those that take turns, where they may; answers need no turns."""
        if not self._together:
            return [[job] for job in jobs]
        taking_turns = [job for job in jobs if job.measurable()]
        alone = [[job] for job in jobs if not job.measurable()]
        return [taking_turns, *alone] if taking_turns else alone

    def _restart(self, jobs: Sequence[_Job], restart: int) -> None:
        """On a machine that is not what it was, before or after, nothing was measured."""
        try:
            self._steady()
            self._restarted(jobs, restart)
            self._steady()
        except EngineError as failure:
            for job in jobs:
                job.fail_all(failure)

    def _restarted(self, jobs: Sequence[_Job], restart: int) -> None:
        with contextlib.ExitStack() as closing:
            opened = [closing.enter_context(_Opened(job, self._opener, self._closer, self._ledger)) for job in jobs]
            for engine in opened:
                self._tell(f"opening {engine.job.spec}")
                engine.open()
            for engine in opened if restart == 0 else ():
                for case in engine.job.questions:
                    self._ask(engine, case)
            for work in dict.fromkeys(case.work for job in jobs for case in job.cases):
                self._measure([(o, case) for o in opened for case in o.job.measurable() if case.work == work])

    def _ask(self, opened: _Opened, case: Case) -> None:
        def ask(engine: Engine) -> None:
            self._answered[case] = self._ask_engine(case, engine)

        self._tell(f"asking {opened.job.spec}")
        opened.attempt(case, ask, Activity.ASKED)
        opened.asked.append(case)

    def _measure(self, cases: Sequence[tuple[_Opened, Case]]) -> None:
        """Cases of one workload: a round of each in turn, forwards and backwards, until each has enough."""
        under_way: list[tuple[_Opened, Rounds]] = []

        def warmed_up(engine: Engine) -> Rounds:
            opened.job.sources.add(Source(engine.source))
            if isinstance(engine, FreshEngine):
                return Rounds(case, dataclasses.replace(self._sampling, rounds=1))
            rounds = Rounds(case, self._sampling)
            if engine.source is not Source.PREDICTED:
                rounds.warm_up(engine)
            return rounds

        for opened, case in cases:
            self._tell(f"warming up {case}")
            rounds = opened.attempt(case, warmed_up, Activity.WARM_UP)
            self._done += 1
            if rounds:
                under_way.append((opened, rounds))
        while under_way:
            more = []
            for opened, rounds in under_way:
                self._tell(f"measuring {rounds.case}")
                opened.attempt(rounds.case, rounds.measure, Activity.MEASURED)
                self._done += 1
                if rounds.case in opened.job.failed:
                    continue
                if Source.PREDICTED in opened.job.sources or rounds.complete():
                    opened.job.restarts.setdefault(rounds.case, []).append(rounds)
                else:
                    more.append((opened, rounds))
            under_way = more[::-1]

    def _tell(self, text: str) -> None:
        """What is about to begin. Rounds that are repeated were not planned."""
        self._on_progress(text, min(self._done, self._total), self._total)


class _Opened:
    """The engine of a job for one restart. One that failed is closed, and another opened for the next workload."""

    def __init__(self, job: _Job, opener: Opener, closer: Closer, ledger: Ledger) -> None:
        self.job, self._opener, self._closer, self._ledger = job, opener, closer, ledger
        self._engine: Engine | None = None
        self._holding: Holding | None = None
        self.asked: list[Case] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self._close(self.job.measurable())
        finally:
            self._let_go()

    def open(self) -> None:
        """An engine that cannot be opened fails everything that was expected of it."""
        self._let_go()
        self._holding = self._ledger.hold(self.job.spec)
        try:
            with self._holding.doing(Activity.LOAD), errors_named(self.job.spec):
                self._engine = self._opener(self.job.spec)
        except LlamaperfError as problem:
            self._let_go()
            self.job.fail_all(problem)

    def attempt(self, case: Case, work: Callable[[Engine], T], activity: Activity) -> T | None:
        """What `work` makes of the open engine; None where that failed, and with it the case."""
        if self._engine is None and case not in self.job.failed:
            self.open()
        if self._engine is None or self._holding is None:
            return None
        try:
            with self._holding.doing(activity), errors_named(case):
                return work(self._engine)
        except Unsupported as problem:  # nothing is wrong with the engine
            self.job.fail([case], problem)
            return None
        except LlamaperfError as problem:
            self.job.fail([case], problem)
            self._close([case])
            return None

    def _let_go(self) -> None:
        if self._holding:
            self._holding.end()

    def _close(self, cases: Sequence[Case]) -> None:
        """An engine that does not close properly was not what was to be measured or asked, and fails the cases it served.

        One that only does not end, as TensorRT-LLM may wait for its workers, had answered before: its results are kept,
        and say so.
        """
        engine, self._engine = self._engine, None
        if engine is None or self._holding is None:
            return
        try:
            with self._holding.doing(Activity.CLOSE), errors_named(self.job.spec):
                unseen = self._closer(engine)
            if unseen:
                self.job.unseen.append(unseen)
        except EngineFailure as failure:
            if not failure.after_the_work:
                self._spoil(cases, failure)
            else:
                self.job.notes.append(f"after its work {failure.problem}, and the engine was killed")
        except LlamaperfError as problem:
            self._spoil(cases, problem)
        finally:
            self._let_go()

    def _spoil(self, cases: Sequence[Case], problem: LlamaperfError) -> None:
        self.job.fail(cases, problem)
        self.job.spoilt |= {case: self.job.failed.get(case, problem) for case in self.asked}


def _assembled(job: _Job, case: Case) -> Measurement | LlamaperfError:
    if len(job.sources) > 1:
        return EngineError(f"{case}: restarts of one case are of different sources: {', '.join(sorted(job.sources))}")
    try:
        return measurement(case, next(iter(job.sources)), job.restarts[case], job.notes, job.unseen)
    except EngineError as problem:
        return problem


def _value(known: T | LlamaperfError) -> T:
    if isinstance(known, LlamaperfError):
        raise known
    return known
