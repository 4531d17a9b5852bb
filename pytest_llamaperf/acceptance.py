"""One pytest session's view of the product under test: hardware, engine, promises, and what was measured so far."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from pytest_llamaperf.account import Activity, Ledger
from pytest_llamaperf.accuracy.companions import TEXT, Look, looked_at
from pytest_llamaperf.accuracy.references import read_reference, reference_file, write_reference
from pytest_llamaperf.accuracy.scores import Scores
from pytest_llamaperf.answers import ANSWERS, REPEATS, Answers, Repeats, answers_of, repeats_of
from pytest_llamaperf.baselines import BaselineBook, can_be_promised, read_baselines, yaml_to_add
from pytest_llamaperf.bench import Bench, Steady
from pytest_llamaperf.cases import CPU, Case, Runtime
from pytest_llamaperf.catalog.tasks import evaluations
from pytest_llamaperf.engines import (
    PREDICTED,
    Engine,
    EngineSpec,
    Opener,
    Surroundings,
)
from pytest_llamaperf.engines.trtllm.nodes import found_nodes
from pytest_llamaperf.environment import compared
from pytest_llamaperf.errors import EngineError, LlamaperfError, Unsupported, UsageError
from pytest_llamaperf.fingerprints import matching
from pytest_llamaperf.gpu_watch.gpus import WatchedGpus
from pytest_llamaperf.hardware import Machine, find_machine
from pytest_llamaperf.hosting.failures import EngineFailure
from pytest_llamaperf.measurements import Measurement, Source
from pytest_llamaperf.measuring import Sampling
from pytest_llamaperf.metrics import Metric
from pytest_llamaperf.records import Result
from pytest_llamaperf.requirements import Requirement, promised_by, required_for
from pytest_llamaperf.scaling.contract import MACHINE
from pytest_llamaperf.settings import AUTO, Settings
from pytest_llamaperf.verdicts import Outcome, Verdict, judge
from pytest_llamaperf.waivers import Waivers, waivers_for
from pytest_llamaperf.wording import shown_path
from pytest_llamaperf.workplace import Workplace

if TYPE_CHECKING:
    from pytest_llamaperf.accuracy.evaluating import Evaluator
    from pytest_llamaperf.accuracy.judging import Judgement
    from pytest_llamaperf.against import Against, Rivalry
    from pytest_llamaperf.journal import Journal
    from pytest_llamaperf.sentinel import Sentinel

T = TypeVar("T")

# Restarts of each build before any is suspected.
LEAST_AGAINST = 3

# What is asked in cases that are about no accuracy task.
_FIXED: Mapping[str, Callable[[Case, Engine], Answers | Repeats | Look]] = {
    ANSWERS: answers_of,
    REPEATS: repeats_of,
    TEXT: looked_at,
}


class Acceptance:
    """What is slow to find out is found out when first asked for: most pytest runs never ask."""

    def __init__(self, settings: Settings, openers: Mapping[str, Opener], surroundings: Surroundings) -> None:
        self.settings = settings
        self.openers = openers
        self.surroundings = surroundings
        self.judged: list[Verdict] = []
        self.ledger = Ledger()
        self._books: dict[str, BaselineBook] = {}

    @functools.cached_property
    def machine(self) -> Machine:
        return find_machine()

    @functools.cached_property
    def gpu(self) -> str:
        """The hardware this run is about."""
        return self.machine.hardware if self.settings.gpu == AUTO else self.settings.gpu

    @functools.cached_property
    def engine_kind(self) -> str:
        """What runs the cases, `predicted` included."""
        if self.settings.engine != AUTO:
            return self.settings.engine
        return "torch" if self.gpu == CPU else "tensorrt-llm"

    @property
    def machine_slug(self) -> str:
        """By which promises for this machine are named: of the whole one, where this process was given a part of it."""
        return os.environ.get(MACHINE) or self.machine.slug

    @property
    def measures(self) -> bool:
        return self.engine_kind != PREDICTED

    @property
    def engine_under_test(self) -> str:
        """The engine that cases are about: a prediction is about TensorRT-LLM."""
        return self.engine_kind if self.measures else "tensorrt-llm"

    @functools.cached_property
    def bench(self) -> Bench:
        """Where this run's cases are measured."""
        # Before an engine is opened: no engine holds anything while another session is waited for.
        return self._bench(self.restarts, self._workplace.take if self.measures else lambda: None)

    @property
    def restarts(self) -> int:
        """Of the engine of a case that is measured."""
        return self.settings.restarts or (3 if self.gpu == CPU else 2)

    @property
    def rounds(self) -> int:
        """In each restart, beside the one that warms up."""
        return self.settings.rounds or (2 if self.gpu == CPU else 3)

    def _bench(self, restarts: int, steady: Steady) -> Bench:
        on_cpu = self.gpu == CPU
        sampling = Sampling(
            restarts,
            rounds=self.rounds,
            watch_cpu=on_cpu,
            gpus=self._gpus,
        )
        return Bench(
            self.open,
            sampling,
            together=on_cpu,
            ask=self._ask,
            on_progress=self.surroundings.on_progress,
            steady=steady,
            closer=self.close_engine,
            ledger=self.ledger if self.measures else None,  # a prediction holds no GPU
        )

    @functools.cached_property
    def _gpus(self) -> WatchedGpus | None:
        """Those this run measures on, if it does."""
        if self.gpu == CPU or not self.measures:
            return None
        return WatchedGpus(
            self.gpu,
            [gpu.uuid for gpu in self.machine.gpus if gpu.name == self.gpu],
            results=self.settings.results,
            lock_clocks=self.settings.lock_clocks,
            nodes=found_nodes().count,
        )

    @functools.cached_property
    def _workplace(self) -> Workplace:
        return Workplace(
            self.gpu,
            self._gpus,
            lock_clocks=self.settings.lock_clocks,
            wait=self.settings.wait,
            tell=lambda text: self.surroundings.on_progress(text, 0, None),
        )

    @functools.cached_property
    def against(self) -> Against | None:
        """The comparison with another build, where one was asked for."""
        runtime = self.settings.against
        if runtime is None:
            return None
        from pytest_llamaperf.against import Against

        return Against(
            runtime,
            self._alternately,
            restarts=self.settings.restarts or LEAST_AGAINST,
            side_by_side=self.gpu == CPU,
            allowed=self.settings.allowed,
            tell=lambda text: self.surroundings.on_progress(text, 0, None),
            journal=self._journal(runtime),
        )

    @property
    def begun_against(self) -> Against | None:
        """That comparison, unless the session ended before anything was expected of it."""
        return vars(self).get("against")

    def _journal(self, runtime: Runtime) -> Journal | None:
        """Raises UsageError for one of another comparison, or one that would be lost."""
        if self.settings.results is None:
            return None
        from pytest_llamaperf.journal import Journal
        from pytest_llamaperf.runtimes import installed_versions

        about = {
            "gpu": self.gpu,
            "engine": self.engine_kind,
            "installed": installed_versions(),
            "against": f"{runtime}: {runtime.python}",
            "environment": compared(dict(runtime.environment)),
            "rounds": self.settings.rounds,
            **matching(self.machine.to_dict()),  # what was measured elsewhere is of another comparison
        }
        return Journal(self.settings.results / "against.jsonl", about, resume=self.settings.resume)

    def _alternately(self, cases: Sequence[Case], restarts: int) -> Mapping[Case, Measurement | LlamaperfError]:
        """Each case and its like under the other build in one group, in that order."""
        self._workplace.take()
        bench = self._bench(restarts, self._sentinel.check)
        groups: dict[Case, list[Case]] = {}
        for case in cases:
            groups.setdefault(case.under(None), []).append(case)
        for group in groups.values():
            bench.expect(measured=group)
        found: dict[Case, Measurement | LlamaperfError] = {}
        for case in cases:
            try:
                found[case] = bench.measurement(case)
            except LlamaperfError as problem:
                found[case] = problem
        return found

    @functools.cached_property
    def _sentinel(self) -> Sentinel:
        """Builds are compared on a machine that stays what it was."""
        from pytest_llamaperf.sentinel import Sentinel

        return Sentinel.of(self.gpu, self.surroundings)

    def _ask(self, case: Case, engine: Engine) -> Answers | Repeats | Look | Scores:
        """The fixed questions, one of them many times, the fixed text, or what an accuracy task asks."""
        ask = _FIXED.get(str(case.work), self._evaluated)
        return ask(case, engine)

    def _evaluated(self, case: Case, engine: Engine) -> Scores:
        return self._evaluator.scores(case, engine)

    @functools.cached_property
    def _evaluator(self) -> Evaluator:
        from pytest_llamaperf.accuracy.evaluating import Evaluator

        return Evaluator(self.surroundings)

    def close(self) -> None:
        """End what was started for the whole session."""
        if "_evaluator" in vars(self):
            self._evaluator.close()
        if "_workplace" in vars(self):
            self._workplace.give_back()

    def open(self, spec: EngineSpec) -> Engine:
        """An engine of its kind, or the predictor where this run predicts.

        Raises EngineError, also where others measure here, or hold the GPUs it would use.
        """
        kind = spec.kind if self.measures else PREDICTED
        if kind not in self.openers:
            raise EngineError(f"{spec}: nothing here opens an engine of this kind")
        if self.measures:
            self._workplace.take()
        if self._gpus is not None:
            self._gpus.check_free()
        return self.openers[kind](spec)

    def close_engine(self, engine: Engine) -> str | None:
        """Close what `open` opened, and see that its GPUs are free again.

        Raises EngineError where they are not; returns why nobody can tell, if that is so.
        """
        try:
            engine.close()
        except EngineFailure as failure:
            if failure.after_the_work and self._gpus is not None:
                self._gpus.check_given_back()
            raise
        return None if self._gpus is None else self._gpus.check_given_back()

    @contextlib.contextmanager
    def opened(self, spec: EngineSpec) -> Iterator[Engine]:
        """An open engine for a test to use by hand, closed afterwards. Raises as `open` does, and as the engine closes."""
        if self.measures:
            self._workplace.take()
        holding = (self.ledger if self.measures else Ledger()).hold(spec)
        try:
            with holding.doing(Activity.LOAD):
                engine = self.open(spec)
            try:
                with holding.doing(Activity.BY_TESTS):
                    yield engine
            finally:
                with holding.doing(Activity.CLOSE):
                    self.close_engine(engine)
        finally:
            holding.end()

    def runs_here(self, case: Case) -> bool:
        """Whether this run is about the case's engine and hardware; a prediction can be about any GPU."""
        if case.engine != self.engine_under_test:
            return False
        return case.hardware == self.gpu or (not self.measures and case.hardware != CPU)

    def missing_gpus(self, case: Case) -> str | None:
        """`needs 8 H200, found 1`, or None where the case fits into this machine."""
        if not self.measures or case.hardware == CPU:
            return None
        found = self.machine.count(case.hardware)
        if case.engine != "torch":
            found *= found_nodes().count
        if found >= case.layout.gpus:
            return None
        return f"needs {case.layout.gpus} {case.hardware.upper()}, found {found}"

    def book(self, hardware: str) -> BaselineBook:
        """The promises for a GPU. Raises DocumentError."""
        if self.settings.baselines_named and not self.settings.baselines.is_dir():
            raise UsageError(f"--baselines {shown_path(self.settings.baselines)}: there is no such folder")
        if hardware not in self._books:
            self._books[hardware] = read_baselines(self.settings.baselines, hardware, self.machine_slug)
        return self._books[hardware]

    def measure(self, case: Case) -> Measurement:
        """Measured, or predicted, once in this process: tests that compare two cases find both here.

        Raises EngineError for a case that could not be measured, without trying again: loading takes minutes.
        """
        # What a test makes up while it runs, as the other layout of a ratio, is of this build alone.
        against = self.against
        measurement = against.measurement(case) if against and case in against else self.bench.measurement(case)
        if (measurement.source is Source.PREDICTED) != (self.engine_kind == PREDICTED):
            raise EngineError(f"{case}: the engine {self.engine_kind} gave a result that is {measurement.source}")
        return measurement

    def answers(self, case: Case) -> Answers:
        """What the engine of a case says to the fixed questions.

        Raises EngineError, Unsupported for a prediction, UsageError for a case that is about something else.
        """
        return self._asked(case, Answers, f"`answers` asks task={ANSWERS!r}")

    def repeats(self, case: Case) -> Repeats:
        """What the engine of a case says to one prompt asked many times.

        Raises as `answers` does.
        """
        return self._asked(case, Repeats, f"`repeats` asks task={REPEATS!r}")

    def look(self, case: Case) -> Look:
        """What the engine of a case expects of the fixed text.

        Raises EngineError, Unsupported for a prediction, UsageError for a case that is about something else.
        """
        return self._asked(case, Look, f"`look` asks task={TEXT!r}")

    def scores(self, case: Case) -> Scores:
        """What the engine of a case gets right.

        Raises EngineError, Unsupported for a prediction, UsageError for a case that is about something else.
        """
        return self._asked(case, Scores, "`evaluate` asks accuracy tasks")

    def _asked(self, case: Case, kind: type[T], asks: str) -> T:
        """What the bench knows of a case, where the case is about that kind of answer; found out before anything opens."""
        fixed = {ANSWERS: Answers, REPEATS: Repeats, TEXT: Look}
        about = fixed.get(str(case.work), Scores if str(case.work) in evaluations() else None)
        if about is not kind:
            raise UsageError(f"{case}: {asks}, and this case is about {case.work}")
        if not self.measures:
            raise Unsupported(f"{case}: a prediction has no answers")
        found = self.bench.answers(case)
        assert isinstance(found, kind)  # by `_ask`, which makes them
        return found

    def judge(self, measurement: Measurement, metric: Metric) -> Verdict | Rivalry:
        """By what the other build does, where one is compared with; ratios, which are of this build alone, by promises."""
        if self.against and not metric.is_ratio:
            return self.against.verdict(measurement.case, metric)
        promise = self.book(measurement.case.hardware).find(measurement.case, metric)
        summary = measurement.of(metric)
        verdict = judge(
            measurement.case,
            summary,
            promise,
            measurement.notes,
            measurement.fingerprint,
            measurement.reproduce,
            measurement.operators,
        )
        if not (measurement.health and measurement.health.blind):  # what nobody saw is recorded as no promise
            self.judged.append(verdict)
        return verdict

    def judge_accuracy(self, candidate: Scores, other: Case) -> Judgement:
        """Against the other case: its stored scores where there are any, else those of this session.

        Raises UsageError for a stored reference of other questions, EngineError for a reference that cannot be had.
        """
        from pytest_llamaperf.accuracy.judging import judged

        path = reference_file(self.settings.baselines, other)
        if path is not None and not self.settings.record:
            reference = read_reference(path, other, candidate.protocol)
        else:
            reference = self.scores(other)
            if self.settings.record:
                write_reference(self.settings.baselines, reference)
        return judged(candidate, reference)

    def is_stored(self, case: Case) -> bool:
        """Whether a reference need not be asked again."""
        return not self.settings.record and reference_file(self.settings.baselines, case) is not None

    def promised(self) -> tuple[Requirement, ...]:
        """What is promised for the hardware and the engine of this run. Raises DocumentError."""
        return promised_by(self.book(self.gpu), self.engine_under_test)

    @functools.cached_property
    def required(self) -> tuple[Requirement, ...]:
        """What a release on this hardware has to have judged. Raises DocumentError."""
        settings = self.settings
        return required_for(self.gpu, self.engine_under_test, root=settings.root, given=settings.gate_file)

    @functools.cached_property
    def waivers(self) -> Waivers:
        """Those about cases of this run, as of this day. Raises DocumentError."""
        today, settings = datetime.now(UTC).date(), self.settings
        return waivers_for(self.gpu, self.engine_under_test, root=settings.root, given=settings.waivers, today=today)

    def waived(self, result: Result) -> Result:
        """With the waiver that covers it, if there is one. Raises DocumentError."""
        # A file called waivers.yaml may be another tool's: it is read where there is something to waive.
        waiver = self.waivers.covering(result) if result.outcome == Outcome.REGRESSION else None
        return dataclasses.replace(result, waiver=waiver.to_dict()) if waiver else result

    def objection(self, result: Result) -> str | None:
        """Why the waiver for a regression does not cover it, if there is one. Raises DocumentError."""
        return self.waivers.objection(result) if result.outcome == Outcome.REGRESSION else None

    def yaml_hint(self, verdict: Verdict) -> str:
        """What to write where, so that a value without a promise gets one."""
        hint = yaml_to_add(self.book(verdict.case.hardware), verdict.case, verdict.summary)
        if self.settings.record or not can_be_promised(verdict.case):
            return hint
        return f"{hint}\nor run once more with --record: that promises what was measured, for this machine"

    def blocks(self, outcome: Outcome) -> bool:
        """Whether an outcome fails its test: a regression always, missing evidence under the gate."""
        return outcome is Outcome.REGRESSION or (self.settings.gate and outcome is not Outcome.PASS)
