"""Values with where they came from: one value for each engine restart, for every metric of a case."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pytest_llamaperf.cases import Case
from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.gpu_health import Health
from pytest_llamaperf.metrics import Better, Metric


class Source(StrEnum):
    """Where a number comes from. Kinds never mix: a prediction is not a measurement and releases nothing."""

    MEASURED = "measured"
    PREDICTED = "predicted"
    PUBLISHED = "published"


@dataclass(frozen=True)
class Fingerprint:
    """What produced a result, beyond its case; two results are alike only if these are.

    versions  name of a package -> its version as loaded
    settings  name of an engine or predictor setting -> the value in effect
    """

    versions: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str | int | float | bool] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        return {"versions": dict(self.versions), "settings": dict(self.settings)}


@dataclass(frozen=True)
class Summary:
    """A metric of one case: its value in base units and the interval of 95 % confidence towards either side.

    low and high are None where there is no spread to judge by: of a prediction, or of a single restart.
    """

    metric: Metric
    source: Source
    values: tuple[float, ...]
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Measurement:
    """All that is known of one case.

    samples    one value for each restart
    elapsed    seconds of every round
    reproduce  the command that repeats it by hand, where there is one
    operators  of a prediction: seconds by kind of operator in a typical iteration, as in Result
    health     how its GPUs did; None on a CPU, and of a prediction
    """

    case: Case
    source: Source
    samples: Mapping[Metric, tuple[float, ...]]
    fingerprint: Fingerprint = field(default_factory=Fingerprint)
    notes: tuple[str, ...] = ()
    elapsed: tuple[float, ...] = ()
    reproduce: str | None = None
    operators: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    health: Health | None = None

    @property
    def values(self) -> Mapping[str, float]:
        """Name of every metric -> its mean over restarts."""
        return {metric.name: statistics.mean(values) for metric, values in self.samples.items() if values}

    def of(self, metric: Metric) -> Summary:
        """Raises UsageError when this run did not give the metric."""
        if not self.samples.get(metric):
            given = ", ".join(sorted(str(m) for m in self.samples)) or "nothing"
            raise UsageError(f"{self.case}: this run gives no {metric}; it gives {given}")
        return summarize_values(metric, self.source, self.samples[metric])

    def versus(self, other: Measurement, metric: Metric) -> Measurement:
        """How many times better than `other` this is, as a measurement of this case with one metric.

        Restarts are paired in order. Raises UsageError unless both have the same source, the same version of whatever both
        tell one of, the same number of restarts, and exactly one difference in the case.
        """
        if self.source is not other.source:
            raise UsageError(f"{self.case} is {self.source}, {other.case} is {other.source}: these never mix")
        if different := _different_versions(self.fingerprint, other.fingerprint):
            raise UsageError(
                f"{self.case} and {other.case} were run with different versions ({different}): nothing to compare"
            )
        ours, theirs = self.of(metric).values, other.of(metric).values
        if len(ours) != len(theirs):
            raise UsageError(f"{self.case} has {len(ours)} restarts, {other.case} has {len(theirs)}: nothing to pair")
        ratios = tuple(a / b if metric.better is Better.HIGHER else b / a for a, b in zip(ours, theirs, strict=True))
        return Measurement(
            self.case,
            self.source,
            {metric.versus(_difference(self.case, other.case)): ratios},
            self.fingerprint,
            tuple(dict.fromkeys((*self.notes, *other.notes))),
            reproduce="\n".join(line for line in (self.reproduce, other.reproduce) if line) or None,
            health=self.health.beside(other.health) if self.health else None,
        )


def summarize_values(metric: Metric, source: Source, values: tuple[float, ...]) -> Summary:
    """Mean and its interval: mean +- t(0.95, n-1) * s / sqrt(n), each end at 95 % one-sided confidence.

    With few restarts t is large (6.3 for two), so an interval of few restarts is honest, and wide.
    """
    value = statistics.mean(values)  # exact, unlike fmean: equal restarts have the value of each
    if source is not Source.MEASURED or len(values) < 2:
        return Summary(metric, source, values, value, None, None)
    # scipy.special is imported late: only a run that measured pays the tenth of a second.
    from scipy.special import stdtrit

    reach = float(stdtrit(len(values) - 1, 0.95)) * statistics.stdev(values) / len(values) ** 0.5
    return Summary(metric, source, values, value, value - reach, value + reach)


def _different_versions(ours: Fingerprint, theirs: Fingerprint) -> str:
    """Of packages that both tell: engines of two kinds do not know the same of what they load."""
    both = sorted(ours.versions.keys() & theirs.versions.keys())
    pairs = ((name, ours.versions[name], theirs.versions[name]) for name in both)
    return ", ".join(f"{name} {mine} and {other}" for name, mine, other in pairs if mine != other)


def _difference(ours: Case, theirs: Case) -> str:
    """The one part of the id in which `theirs` differs, the word a ratio is named by."""
    pairs = zip(ours.id.split("/"), theirs.id.split("/"), strict=True)
    different = [b for a, b in pairs if a != b]
    if len(different) != 1:
        raise UsageError(f"a ratio compares cases that differ in one thing; {ours} and {theirs} do not")
    return different[0]
