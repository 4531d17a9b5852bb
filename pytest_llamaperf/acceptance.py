"""One pytest session's view of the product under test: hardware, engine, promises, and what was measured so far."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping

from pytest_llamaperf.baselines import BaselineBook, read_baselines, yaml_to_add
from pytest_llamaperf.cases import Case
from pytest_llamaperf.engines import PREDICTED, Opener, readiness
from pytest_llamaperf.errors import EngineError, UsageError
from pytest_llamaperf.hardware import CPU, Machine, find_machine
from pytest_llamaperf.measurements import Measurement, Source
from pytest_llamaperf.measuring import measure
from pytest_llamaperf.metrics import Metric
from pytest_llamaperf.records import Result
from pytest_llamaperf.settings import AUTO, Settings
from pytest_llamaperf.verdicts import Outcome, Verdict, judge
from pytest_llamaperf.wording import shown_path


class Acceptance:
    """What is slow to find out is found out when first asked for: most pytest runs never ask."""

    def __init__(self, settings: Settings, openers: Mapping[str, Opener]) -> None:
        self.settings = settings
        self.openers = openers
        self._books: dict[str, BaselineBook] = {}
        self._measured: dict[Case, Measurement | EngineError] = {}

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
    def measures(self) -> bool:
        return self.engine_kind != PREDICTED

    @property
    def engine_under_test(self) -> str:
        """The engine that cases are about: a prediction is about TensorRT-LLM."""
        return self.engine_kind if self.measures else "tensorrt-llm"

    def check_options(self) -> None:
        """Refuse at the start what the command line alone shows to be impossible. Raises UsageError."""
        if self.settings.gpu != AUTO:
            self.check_possible()

    def check_possible(self) -> None:
        """Refuse, with what would work, a run that this machine cannot do as asked. Raises UsageError."""
        if not self.measures and self.gpu == CPU:
            raise UsageError("--engine predicted needs the GPU to predict: add --gpu h100, --gpu h200 or --gpu b200")
        if self.measures and self.gpu != CPU and not self.machine.count(self.gpu):
            raise UsageError(
                f"--gpu {self.gpu}: there is none in this machine; found: {self.machine}.\n"
                f"These would work here:\n"
                f"  pytest suites/ --gpu {self.gpu} --engine predicted   (NVIDIA's operator times; needs no GPU)\n"
                f"  pytest suites/ --gpu cpu                     (the embedded model; needs the torch engine)"
            )

    def check_engine(self) -> None:
        """Refuse a kind of engine that cannot work here. Raises UsageError."""
        ready = readiness(self.engine_kind, self.openers)
        if not ready.ready:
            raise UsageError(f"--engine {self.engine_kind}: {ready.detail}; `llamaperf doctor` shows what works here")

    def runs_here(self, case: Case) -> bool:
        """Whether this run is about the case's hardware; a prediction can be about any."""
        return not self.measures or case.hardware == self.gpu

    def missing_gpus(self, case: Case) -> str | None:
        """`needs 8 H200, found 1`, or None where the case fits into this machine."""
        if not self.measures or case.hardware == CPU:
            return None
        found = self.machine.count(case.hardware)
        if found >= case.layout.gpus:
            return None
        return f"needs {case.layout.gpus} {case.hardware.upper()}, found {found}"

    def book(self, hardware: str) -> BaselineBook:
        """The promises for a GPU. Raises DocumentError."""
        if self.settings.baselines_named and not self.settings.baselines.is_dir():
            raise UsageError(f"--baselines {shown_path(self.settings.baselines)}: there is no such folder")
        if hardware not in self._books:
            self._books[hardware] = read_baselines(self.settings.baselines, hardware)
        return self._books[hardware]

    def measure(self, case: Case) -> Measurement:
        """Measured, or predicted, once in this process: tests that compare two cases find both here.

        A case that could not be measured is not tried again: loading an engine takes minutes.
        """
        if case not in self._measured:
            try:
                found: Measurement | EngineError = self._measure(case)
            except EngineError as problem:
                found = problem
            self._measured[case] = found
        known = self._measured[case]
        if isinstance(known, EngineError):
            raise known
        return known

    def _measure(self, case: Case) -> Measurement:
        measurement = measure(case, self.openers[self.engine_kind], restarts=self.settings.restarts)
        if (measurement.source is Source.PREDICTED) != (self.engine_kind == PREDICTED):
            raise EngineError(f"{case}: the engine {self.engine_kind} gave a result that is {measurement.source}")
        return measurement

    def judge(self, measurement: Measurement, metric: Metric) -> Verdict:
        promise = self.book(measurement.case.hardware).find(measurement.case, metric)
        return judge(measurement.case, measurement.of(metric), promise, measurement.notes, measurement.fingerprint)

    def unjudged(self, results: Iterable[Result]) -> tuple[str, ...]:
        """Promises for the hardware of this run that no test asked about."""
        judged = {(str(result.case["id"]), result.metric) for result in results}
        return tuple(
            f"{entry.case.id} {entry.metric}"
            for entry in self.book(self.gpu)
            if (entry.case.id, entry.metric.name) not in judged and entry.case.engine == self.engine_under_test
        )

    def yaml_hint(self, verdict: Verdict) -> str:
        """What to write where, so that a value without a promise gets one."""
        return yaml_to_add(self.book(verdict.case.hardware), verdict.case, verdict.summary)

    def blocks(self, verdict: Verdict) -> bool:
        """Whether a verdict fails its test: a broken promise always, missing evidence under the gate."""
        return verdict.outcome is Outcome.REGRESSION or (self.settings.gate and verdict.outcome is not Outcome.PASS)
