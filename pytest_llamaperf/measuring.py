"""From a case to a Measurement: open the engine as often as evidence needs, one value a restart."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence

from pytest_llamaperf.cases import Case, Task, Workload
from pytest_llamaperf.engines import Opener, Run
from pytest_llamaperf.errors import EngineError, LlamaperfError, UsageError
from pytest_llamaperf.lengths import request_lengths
from pytest_llamaperf.measurements import Fingerprint, Measurement, Source
from pytest_llamaperf.metrics import Metric
from pytest_llamaperf.traces import summarize


def measure(case: Case, open_engine: Opener, *, restarts: int) -> Measurement:
    """Run the case's workload in `restarts` fresh engines; a prediction, which repeats to the bit, in one.

    Raises UsageError for a case without workload, EngineError when an engine could not do the work, did
    not do all of it, or restarts were not alike.
    """
    if restarts < 1:
        raise ValueError(f"a measurement takes at least one restart, not {restarts}")
    workload = case.work
    if isinstance(workload, Task):
        raise UsageError(f"{case}: is an accuracy task, which has no speed to measure")
    runs: list[Run] = []
    sources: list[Source] = []
    while len(runs) < restarts and Source.PREDICTED not in sources:
        with _errors_named(case):
            engine = open_engine(case)
            with contextlib.closing(engine):
                sources.append(Source(engine.source))
                runs.append(engine.run(workload))
            _check_complete(case, workload, runs[-1])
    if len(set(sources)) > 1:
        raise EngineError(f"{case}: restarts of one case are of different sources: {', '.join(sources)}")
    return Measurement(case, sources[0], _samples(case, runs), _fingerprint(case, runs), _notes(runs))


@contextlib.contextmanager
def _errors_named(case: Case) -> Iterator[None]:
    """Whatever an engine raises is an error of the engine: nothing it does may look like a regression, or a pass."""
    try:
        yield
    except LlamaperfError:
        raise
    except Exception as problem:
        raise EngineError(f"{case}: the engine failed: {type(problem).__name__}: {problem}") from problem


def _check_complete(case: Case, workload: Workload, run: Run) -> None:
    """Refuse a run that is not the one asked for: requests lost, answers cut short, readings that are no numbers."""
    asked = Counter(request_lengths(workload))
    found = Counter((trace.input_tokens, trace.output_tokens) for trace in run.traces)
    if asked != found:
        (isl, osl), count = next(iter((asked - found or found - asked).items()))
        raise EngineError(
            f"{case}: asked for {asked.total():,} requests, the engine reports {found.total():,}; "
            f"{count:,} of ISL {isl:,} and OSL {osl:,} are {'missing' if asked - found else 'too many'}"
        )
    wrong = [str(metric) for metric, value in run.readings.items() if not math.isfinite(value)]
    if wrong:
        raise EngineError(f"{case}: the engine reports no number for {', '.join(wrong)}")


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
