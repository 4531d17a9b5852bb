"""What can carry out a workload. Each kind of engine is a module of this folder, imported when it is opened.

The predictor stands here too: it answers no request, but it runs a workload and yields traces like any other, in
virtual time and with its own source, so that everything after it exists once.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pytest_llamaperf.cases import ENGINES, Case, Workload
from pytest_llamaperf.errors import UsageError, nearest
from pytest_llamaperf.measurements import Fingerprint, Source
from pytest_llamaperf.metrics import Metric
from pytest_llamaperf.traces import Trace

PREDICTED = "predicted"
KINDS = (*ENGINES, PREDICTED)


@dataclass(frozen=True)
class Run:
    """One run of a workload: a trace for each request, and what else was read (`readings`, in the metric's unit)."""

    traces: tuple[Trace, ...]
    readings: Mapping[Metric, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    fingerprint: Fingerprint = field(default_factory=Fingerprint)


class Engine(Protocol):
    """An engine opened for one case. Whoever opened it closes it; `close` may be called twice."""

    @property
    def source(self) -> Source: ...

    def run(self, workload: Workload) -> Run:
        """Raises EngineError when the work could not be done."""
        ...

    def close(self) -> None: ...


# From a case to an open engine for it; raises EngineError when it cannot be opened.
Opener = Callable[[Case], Engine]


@dataclass(frozen=True)
class Readiness:
    """Whether a kind of engine can work here, why not, and what would help."""

    ready: bool
    detail: str


def built_in_openers() -> dict[str, Opener]:
    """The kinds of engine this version of the plugin brings."""
    return {PREDICTED: _open_predicted}


def opened_by(brought: Sequence[Mapping[str, Opener]]) -> dict[str, Opener]:
    """All openers by kind, of answers to the hook; the first to name a kind opens it.

    Raises UsageError for an unknown kind, and for an opener of `predicted`, whose results must never be measured.
    """
    openers: dict[str, Opener] = {}
    for answer in reversed(brought):
        if not isinstance(answer, Mapping):
            raise UsageError(f"pytest_llamaperf_engines: returns a mapping from kind to opener, not {answer!r}")
        openers |= answer
    for kind in openers:
        if kind not in KINDS:
            raise UsageError(f"pytest_llamaperf_engines: unknown kind {kind!r}; {nearest(kind, ENGINES)}")
    if sum(PREDICTED in answer for answer in brought) > 1:
        raise UsageError(
            f"pytest_llamaperf_engines: {PREDICTED!r} is the plugin's own; open one of {', '.join(ENGINES)}"
        )
    return openers


def readiness(kind: str, openers: Mapping[str, Opener]) -> Readiness:
    """What stands between this machine and an engine of this kind."""
    if kind not in openers:
        return Readiness(False, f"this version of pytest-llamaperf brings no {kind} engine yet")
    if kind == PREDICTED and importlib.util.find_spec("aiconfigurator_core") is None:
        return Readiness(False, "aiconfigurator-core is missing: pip install 'pytest-llamaperf[predict]'")
    return Readiness(True, "ready")


def _open_predicted(case: Case) -> Engine:
    from pytest_llamaperf.engines.predicted import PredictedEngine

    return PredictedEngine(case)
