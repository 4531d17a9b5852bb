"""A value that was measured, predicted or published at some time, with all that decides what it may be compared with."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_llamaperf.records import Result
from pytest_llamaperf.runs import Run

# Which of a result's versions is that of TensorRT-LLM, the first that is there. The last stands for the tables of a prediction.
RUNTIME = ("tensorrt_llm", "tensorrt-llm (operator tables)")


@dataclass(frozen=True)
class Observation:
    """One metric of one case, once.

    case      its id, hardware/engine/model/recipe/layout/work
    value     in `unit`, a base unit; `values` of each restart, `low` and `high` of the interval, where they are known
    source    measured, predicted or published
    harness   who measured, and by which definition: values of two harnesses are never compared
    version   of TensorRT-LLM, as it writes it; None where nobody says
    when      UTC, ISO 8601; None where nobody says
    run       what it came in: the id of a run, or a name of a publication
    versions, settings, machine   what it was made with and on, as far as is known
    operators  of a prediction: seconds of operators in a typical iteration, as in Result
    outcome   pass, regression and so on, where it was judged
    reference  where it is to be found
    blind     why nobody can tell how the GPUs did meanwhile; None where somebody watched them, or nothing is said. No history has
               such a value
    """

    case: str
    metric: str
    unit: str
    better: str
    source: str
    value: float
    run: str
    harness: str
    version: str | None = None
    when: str | None = None
    values: tuple[float, ...] = ()
    low: float | None = None
    high: float | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    operators: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    outcome: str | None = None
    reference: str | None = None
    blind: str | None = None


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without the collector of cycles, of which observations have none: it would walk over all of them again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def observations_of(run: Run) -> tuple[Observation, ...]:
    """Every value of a run. Errors have none; a value that two tests judged is one."""
    found: dict[tuple[str, str], Observation] = {}
    for result in run.results:
        if result.metric is not None and result.value is not None:
            key = (str(result.case["id"]), result.metric)
            found.setdefault(key, _observation(run, result, result.value))
    return tuple(found.values())


def _observation(run: Run, result: Result, value: float) -> Observation:
    versions = dict(result.fingerprint.get("versions", {}))
    return Observation(
        case=str(result.case["id"]),
        metric=str(result.metric),
        unit=str(result.unit),
        better=str(result.better),
        source=str(result.source),
        value=value,
        run=run.header.id,
        harness=f"pytest-llamaperf/{run.header.engine}",
        version=next((versions[name] for name in RUNTIME if name in versions), None),
        when=run.header.started,
        values=result.values,
        low=result.low,
        high=result.high,
        versions=versions,
        settings=dict(result.fingerprint.get("settings", {})),
        machine=run.header.fingerprint,
        operators=result.operators,
        outcome=result.outcome,
        blind=result.blind,
    )
