"""From rounds to a Measurement: what is kept of an engine's rounds, and one value a restart from them."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pytest_llamaperf.cases import Case, Task, Workload
from pytest_llamaperf.engines import Engine, FreshEngine, Run
from pytest_llamaperf.errors import EngineError, LlamaperfError, UsageError
from pytest_llamaperf.gpu_health import Health
from pytest_llamaperf.gpu_watch.gpus import WatchedGpus
from pytest_llamaperf.gpu_watch.watching import Watched
from pytest_llamaperf.lengths import request_lengths
from pytest_llamaperf.measurements import Fingerprint, Measurement, Source
from pytest_llamaperf.metrics import Metric
from pytest_llamaperf.quiet import TOLERATED_CORES, CpuReading
from pytest_llamaperf.traces import summarize
from pytest_llamaperf.wording import counted

# A first round slower than those after it by more than this was still warming up.
STATIONARY = 1.1


@dataclass(frozen=True)
class Sampling:
    """How much evidence: engine restarts, and rounds of each workload within one.

    Rounds that are not kept, for warming up and for what others did on the machine, are at most `rounds` more.
    Watched are what others do on the CPU, or the GPUs.
    """

    restarts: int
    rounds: int
    watch_cpu: bool = False
    gpus: WatchedGpus | None = None


@dataclass(frozen=True)
class Round:
    """A run, with the cores that others used meanwhile (0 where nobody looks), and what was seen of its GPUs."""

    run: Run
    other_cores: float
    watched: Watched | None = None

    @property
    def elapsed(self) -> float:
        """Seconds from the first submission to the last token."""
        return self.run.elapsed

    @property
    def disturbed(self) -> bool:
        return self.other_cores > TOLERATED_CORES


class Rounds:
    """The rounds of one case in one open engine: warmed up, measured, and measured again where need be."""

    def __init__(self, case: Case, sampling: Sampling) -> None:
        self.case = case
        self._sampling = sampling
        self._workload = workload_of(case)
        self._kept: list[Round] = []
        self._spare = sampling.rounds
        self.repeated = 0

    def warm_up(self, engine: Engine) -> None:
        """One round that counts for nothing; see `complete` for what one round does not warm up."""
        self._round(engine)

    def measure(self, engine: Engine) -> None:
        self._kept.append(self._round(engine))

    def complete(self) -> bool:
        """Whether enough was kept. What is not good enough is dropped, as long as there are spare rounds.

        Disturbed rounds go first, then a first round that is slower than what follows: it was still warming up.
        """
        while self._spare and (poor := self._poor()):
            self._kept.remove(poor)
            self._spare -= 1
            self.repeated += poor.disturbed
        return len(self._kept) >= self._sampling.rounds

    def kept(self) -> tuple[Round, ...]:
        return tuple(self._kept)

    def _poor(self) -> Round | None:
        disturbed = [found for found in self._kept if found.disturbed]
        if disturbed:
            return max(disturbed, key=lambda found: found.other_cores)
        if len(self._kept) < 2:
            return None
        first, *others = self._kept
        return first if first.elapsed > STATIONARY * statistics.median(other.elapsed for other in others) else None

    def _round(self, engine: Engine) -> Round:
        """Raises EngineError for a run that failed, was not the one asked for, or was made on GPUs that were not fit."""
        before = CpuReading.now() if self._sampling.watch_cpu else None
        with errors_named(self.case):
            run, watched = self._watched(engine)
        _check_complete(self.case, self._workload, run)
        return Round(run, CpuReading.now().other_cores(before) if before else 0.0, watched)

    def _watched(self, engine: Engine) -> tuple[Run, Watched | None]:
        """A run of the engine, on GPUs that were looked at meanwhile where there are any."""
        if self._sampling.gpus is None:
            return engine.run(self._workload), None
        with self._sampling.gpus.watch(self.case, loaded=not isinstance(engine, FreshEngine)) as watch:
            run = engine.run(self._workload)
        if failure := watch.failure():
            raise failure
        return run, watch.watched

    def health(self, others: Sequence[Rounds], unseen: Sequence[str]) -> Health | None:
        """Of the GPUs in these rounds and in those of other restarts; `unseen` is what nobody saw between them."""
        if self._sampling.gpus is None:
            return None
        runs = [found.watched for rounds in (self, *others) for found in rounds.kept() if found.watched]
        return self._sampling.gpus.health(self.case, runs, unseen)


def workload_of(case: Case) -> Workload:
    """Raises UsageError for a case that is about answers, which have no speed."""
    if isinstance(case.work, Task):
        raise UsageError(f"{case}: is about answers ({case.work}), which have no speed to measure")
    return case.work


@contextlib.contextmanager
def errors_named(about: object) -> Iterator[None]:
    """Whatever an engine raises is an error of the engine: nothing it does may look like a regression, or a pass."""
    try:
        yield
    except LlamaperfError:
        raise
    except Exception as problem:
        raise EngineError(f"{about}: the engine failed: {type(problem).__name__}: {problem}") from problem


def measurement(
    case: Case, source: Source, restarts: Sequence[Rounds], notes: Sequence[str] = (), unseen: Sequence[str] = ()
) -> Measurement:
    """One value a restart for each metric: the median of its rounds, which a single slow round does not move.

    `notes` are added to those of the runs, `unseen` makes it blind. Raises EngineError where restarts were not alike.
    """
    first, *others = restarts
    health = first.health(others, unseen)
    rounds = [found.kept() for found in restarts]
    runs = [found.run for kept in rounds for found in kept]
    values = [[_values(found.run, case.layout.gpus) for found in kept] for kept in rounds]
    _refuse_uneven(case, [found for kept in values for found in kept])
    samples = {
        metric: tuple(statistics.median(found[metric] for found in kept) for kept in values) for metric in values[0][0]
    }
    return Measurement(
        case,
        source,
        samples,
        _fingerprint(case, runs, health),
        tuple(
            dict.fromkeys(
                [*(note for run in runs for note in run.notes), *_disturbances(restarts), *_told(health), *notes]
            )
        ),
        elapsed=tuple(found.elapsed for kept in rounds for found in kept),
        reproduce=runs[0].reproduce,
        operators=runs[0].operators,
        health=health,
    )


def _values(run: Run, gpus: int) -> dict[Metric, float]:
    """What the engine reports itself goes before what its traces amount to."""
    return {**(summarize(run.traces, gpus) if run.traces else {}), **run.readings}


def _disturbances(restarts: Sequence[Rounds]) -> list[str]:
    """What others did to the measurement, for whoever wonders about its spread."""
    repeated = sum(found.repeated for found in restarts)
    disturbed = [r.other_cores for found in restarts for r in found.kept() if r.disturbed]
    notes = []
    if repeated:
        notes.append(f"other processes were at work: {counted(repeated, 'round')} repeated")
    if disturbed:
        notes.append(
            f"other processes were at work in {counted(len(disturbed), 'round')} that had to be kept "
            f"(up to {max(disturbed):.1f} cores)"
        )
    return notes


def _told(health: Health | None) -> list[str]:
    """What people should know of it who do not look for it."""
    if health is None:
        return []
    return [
        *([f"the GPUs were not watched: {health.blind}"] if health.blind else []),
        *([f"SM clocks were locked at {health.lock_clocks:,} MHz"] if health.lock_clocks else []),
        *([health.trace_problem] if health.trace_problem else []),
    ]


def _check_complete(case: Case, workload: Workload, run: Run) -> None:
    """Refuse a run that is not the one asked for: requests lost, answers cut short, readings that are no numbers."""
    asked = Counter(request_lengths(workload))
    found = Counter(run.lengths)
    if asked != found:
        (isl, osl), count = next(iter((asked - found or found - asked).items()))
        raise EngineError(
            f"{case}: asked for {asked.total():,} requests, the engine reports {found.total():,}; "
            f"{count:,} of ISL {isl:,} and OSL {osl:,} are {'missing' if asked - found else 'too many'}"
        )
    wrong = [str(metric) for metric, value in run.readings.items() if not math.isfinite(value)]
    if wrong:
        raise EngineError(f"{case}: the engine reports no number for {', '.join(wrong)}")


def _refuse_uneven(case: Case, values: Sequence[dict[Metric, float]]) -> None:
    """A metric that only some runs give would not pair with those of other cases."""
    for number, found in enumerate(values):
        uneven = sorted(str(metric) for metric in found.keys() ^ values[0].keys())
        if uneven:
            raise EngineError(f"{case}: run {number + 1} and run 1 do not both give {', '.join(uneven)}")


def _fingerprint(case: Case, runs: Sequence[Run], health: Health | None) -> Fingerprint:
    """Of all runs: restarts of one case must have been alike. With locked clocks it is another thing that is measured."""
    first = runs[0].fingerprint
    for number, run in enumerate(runs):
        if run.fingerprint != first:
            raise EngineError(
                f"{case}: run {number + 1} was made with other versions or settings than run 1: "
                f"{run.fingerprint.to_dict()} instead of {first.to_dict()}"
            )
    if health is None or health.lock_clocks is None:
        return first
    return Fingerprint(first.versions, {**first.settings, "SM clocks locked at": health.lock_clocks})
