"""From a case to a Measurement: open the engine as often as evidence needs, one value a restart."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_llamaperf.cases import Case, Task
from pytest_llamaperf.engines import Opener, Run
from pytest_llamaperf.errors import EngineError, UsageError
from pytest_llamaperf.measurements import Fingerprint, Measurement, Source
from pytest_llamaperf.metrics import Metric
from pytest_llamaperf.traces import summarize


def measure(case: Case, open_engine: Opener, *, restarts: int) -> Measurement:
    """Run the case's workload in `restarts` fresh engines; a prediction, which repeats to the bit, in one.

    Raises UsageError for a case without workload, EngineError when an engine could not do the work or restarts
    were not alike.
    """
    if restarts < 1:
        raise ValueError(f"a measurement takes at least one restart, not {restarts}")
    workload = case.work
    if isinstance(workload, Task):
        raise UsageError(f"{case}: is an accuracy task, which has no speed to measure")
    runs: list[Run] = []
    source = Source.MEASURED
    while len(runs) < restarts and (not runs or source is Source.MEASURED):
        engine = open_engine(case)
        try:
            source = engine.source
            runs.append(engine.run(workload))
        finally:
            engine.close()
    return Measurement(case, source, _samples(case, runs), _fingerprint(case, runs), _notes(runs))


def _samples(case: Case, runs: Sequence[Run]) -> dict[Metric, tuple[float, ...]]:
    """One value a run for each metric; a metric that only some runs give is refused, for its values would not pair."""
    values = [{**summarize(run.traces, case.layout.gpus), **run.readings} for run in runs]
    for number, found in enumerate(values):
        uneven = sorted(str(metric) for metric in found.keys() ^ values[0].keys())
        if uneven:
            raise EngineError(f"{case}: restart {number + 1} and restart 1 do not both give {', '.join(uneven)}")
    return {metric: tuple(found[metric] for found in values) for metric in values[0]}


def _fingerprint(case: Case, runs: Sequence[Run]) -> Fingerprint:
    """Of all runs: restarts of one case must have been alike."""
    first = runs[0].fingerprint
    for number, run in enumerate(runs):
        if run.fingerprint != first:
            raise EngineError(
                f"{case}: restart {number + 1} ran with other versions or settings than restart 1: "
                f"{run.fingerprint.to_dict()} instead of {first.to_dict()}"
            )
    return first


def _notes(runs: Sequence[Run]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(note for run in runs for note in run.notes))
