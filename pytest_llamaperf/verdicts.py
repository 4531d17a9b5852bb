"""Is the promise kept? Measured against promised, as a value with its reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pytest_llamaperf.baselines import Baseline
from pytest_llamaperf.cases import Case
from pytest_llamaperf.measurements import Fingerprint, Source, Summary
from pytest_llamaperf.metrics import Better
from pytest_llamaperf.wording import amount, change, counted, interval


class Outcome(StrEnum):
    """Six words, each its own; only `pass` of a measurement releases anything."""

    PASS = "pass"
    REGRESSION = "regression"
    INCONCLUSIVE = "inconclusive"
    NO_BASELINE = "no-baseline"
    SUSPECT = "suspect"
    ERROR = "error"


@dataclass(frozen=True)
class Verdict:
    """One metric of one case against its promise; `notes` qualify the value, as extrapolation does."""

    case: Case
    summary: Summary
    baseline: Baseline | None
    outcome: Outcome
    notes: tuple[str, ...] = ()
    fingerprint: Fingerprint = field(default_factory=Fingerprint)
    reproduce: str | None = None
    operators: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def reason(self) -> str:
        """One sentence: fact, promise, difference."""
        metric, unit = self.summary.metric, self.summary.metric.unit
        fact = f"{metric} {self.summary.source} {amount(self.summary.value, unit)}"
        fact += interval(self.summary.low, self.summary.high, unit)
        if self.baseline is None:
            return f"{fact}; nothing is promised for it"
        return (
            f"{fact}, promised {amount(self.baseline.value, unit)} ({self.baseline.source}): "
            f"{change(self.summary.value, self.baseline.value)}"
        )

    def __str__(self) -> str:
        """The failure as a person reads it: promise, fact, difference, where it stands, and what to do."""
        told = {**self._promise_and_fact(), **{f"note {n + 1}": note for n, note in enumerate(self.notes)}}
        told["to do"] = self.advice
        if self.reproduce:
            told["by hand"] = self.reproduce.replace("\n", f"\n{'':15}")
        lines = [f"    {name:<10} {text}" for name, text in told.items()]
        return "\n".join([f"{self.case}", f"  {self.summary.metric}: {self.outcome}", *lines])

    def _promise_and_fact(self) -> dict[str, str]:
        summary, metric = self.summary, self.summary.metric
        fact = f"{amount(summary.value, metric.unit)}{interval(summary.low, summary.high, metric.unit)}"
        if summary.source is Source.MEASURED:
            fact += f", {counted(len(summary.values), 'restart')}"
        if self.baseline is None:
            return {summary.source.value: f"{fact}; nothing is promised for it"}
        promise = self.baseline
        bound = "at least" if metric.better is Better.HIGHER else "at most"
        against = f"{change(summary.value, promise.value)} against the promise"
        return {
            "promised": f"{amount(promise.value, metric.unit)}, so {bound} {amount(promise.limit, metric.unit)} "
            f"({promise.tolerance * 100:g} % tolerance)",
            summary.source.value: f"{fact}: {against}, {change(summary.value, promise.limit)} against the limit",
            "promise in": f"{promise.place} ({promise.source}{', ' + promise.reference if promise.reference else ''})",
        }

    @property
    def advice(self) -> str:
        predicted = self.summary.source is Source.PREDICTED
        match self.outcome:
            case Outcome.REGRESSION if predicted:
                return (
                    "a prediction says this promise is out of reach: check the promise and its layout, "
                    "or measure it on the real machine before believing either"
                )
            case Outcome.REGRESSION:
                return "find the change that cost this; if it is wanted, lower the promise in a commit of its own"
            case Outcome.INCONCLUSIVE if len(self.summary.values) < 2:
                return "one restart does not show how much restarts differ: run with --restarts 3 or more"
            case Outcome.INCONCLUSIVE:
                return "the limit lies within the interval: run again with more --restarts"
            case Outcome.NO_BASELINE if predicted:
                return "a prediction never becomes a promise: measure this case, or add what was published for it"
            case Outcome.NO_BASELINE:
                return "review the value and add it to the baseline file"
            case _:
                return "nothing"


def judge(
    case: Case,
    summary: Summary,
    baseline: Baseline | None,
    notes: tuple[str, ...] = (),
    fingerprint: Fingerprint | None = None,
    reproduce: str | None = None,
    operators: Mapping[str, Mapping[str, float]] | None = None,
) -> Verdict:
    """The whole interval on the good side of the limit: pass; on the other: regression; across it: inconclusive.

    A prediction has no interval and is judged by its value. A single measured restart has none either, and is
    inconclusive: it says nothing about how much restarts differ.
    """
    outcome = _outcome(summary, baseline)
    return Verdict(case, summary, baseline, outcome, notes, fingerprint or Fingerprint(), reproduce, operators or {})


def _outcome(summary: Summary, baseline: Baseline | None) -> Outcome:
    if baseline is None:
        return Outcome.NO_BASELINE
    if summary.source is Source.MEASURED and summary.low is None:
        return Outcome.INCONCLUSIVE
    low = summary.value if summary.low is None else summary.low
    high = summary.value if summary.high is None else summary.high
    if baseline.metric.better is Better.HIGHER:
        return _side(worst=low - baseline.limit, best=high - baseline.limit)
    return _side(worst=baseline.limit - high, best=baseline.limit - low)


def _side(*, worst: float, best: float) -> Outcome:
    """By how far the two ends of the interval are on the good side of the limit."""
    if worst >= 0:
        return Outcome.PASS
    return Outcome.REGRESSION if best < 0 else Outcome.INCONCLUSIVE
