"""What is left of a finished test: plain values that cross processes and become JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pytest_llamaperf.verdicts import Outcome, Verdict

# What a waiver says at least.
_WAIVER = frozenset({"reason", "owner", "expires", "file", "line"})
_LARGEST = 1e300  # of any quantity


@dataclass(frozen=True)
class Result:
    """One metric of one case as it was judged: an entry of `results` in run.json.

    `value`, `low`, `high` and `values` are in `unit`; `baseline` is None where nothing was promised. Of an outcome
    `error` there is no metric and no value. `reproduce` repeats the measurement by hand, where a command does. `operators`
    is of a prediction: seconds by kind of operator in a typical iteration (`decode`, `prompt`, and each `at best`).
    `metrics` are the values of every metric of the same measurement, judged or not. `paired` is of an accuracy that was
    compared document by document: see `Comparison.counts`.
    `waiver` says who answers for a regression, why and until when; the outcome stays what it is. `health` tells how GPUs did
    during a measurement (`gpu_health.Health`), and why nobody can tell; empty on a CPU. It says nothing about what was measured.
    """

    nodeid: str
    case: Mapping[str, Any]
    metric: str | None
    unit: str | None
    better: str | None
    source: str | None
    values: tuple[float, ...]
    value: float | None
    low: float | None
    high: float | None
    baseline: Mapping[str, Any] | None
    outcome: str
    message: str
    notes: tuple[str, ...] = ()
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    reproduce: str | None = None
    operators: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    paired: Mapping[str, float] = field(default_factory=dict)
    waiver: Mapping[str, Any] | None = None
    health: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """Case and metric; of an error there is no metric."""
        return f"{self.case['id']} {self.metric}" if self.metric else str(self.case["id"])

    @property
    def blind(self) -> str | None:
        """Why nobody can tell how the GPUs did, None where somebody watched or nothing is said."""
        return str(why) if (why := self.health.get("blind")) else None

    @property
    def waived(self) -> str:
        """`waived until ... by ...: why (where)`, empty where it is not."""
        if self.waiver is None:
            return ""
        it = self.waiver
        return f"waived until {it['expires']} by {it['owner']}: {it['reason']} ({it['file']}:{it['line']})"

    @classmethod
    def of_verdict(cls, nodeid: str, verdict: Verdict) -> Result:
        summary = verdict.summary
        return cls(
            nodeid,
            verdict.case.to_dict(),
            summary.metric.name,
            summary.metric.unit,
            summary.metric.better.value,
            summary.source.value,
            summary.values,
            summary.value,
            summary.low,
            summary.high,
            verdict.baseline.to_dict() if verdict.baseline else None,
            verdict.outcome.value,
            verdict.reason,
            verdict.notes,
            verdict.fingerprint.to_dict(),
            verdict.reproduce,
            verdict.operators,
        )

    @classmethod
    def of_error(cls, nodeid: str, case: Mapping[str, Any], message: str) -> Result:
        """A case whose value could not be had: an error is never a regression, and never a pass."""
        return cls(nodeid, case, None, None, None, None, (), None, None, None, None, Outcome.ERROR.value, message)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Result:
        """Raises KeyError, TypeError or ValueError for what is no result."""
        result = cls(**{**data, "values": tuple(data["values"]), "notes": tuple(data["notes"])})
        result._check()
        return result

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def _check(self) -> None:
        """Raises TypeError or ValueError: a run may have been edited, and what reads it relies on these."""
        for name in ("case", "fingerprint", "health", *(("baseline",) if self.baseline is not None else ())):
            if not isinstance(getattr(self, name), Mapping):
                raise TypeError(f"{name} of {self.nodeid} is no object")
        for name in ("versions", "settings"):
            if not isinstance(self.fingerprint.get(name, {}), Mapping):
                raise TypeError(f"the {name} of {self.nodeid} are no object")
        if not isinstance(self.case.get("id"), str):
            raise TypeError(f"the case of {self.nodeid} has no id")
        for name in ("nodeid", "metric", "unit", "source", "outcome", "message", "reproduce"):
            text = getattr(self, name)
            if not isinstance(text, str) and (text is not None or name in ("nodeid", "outcome", "message")):
                raise TypeError(f"{name} of {self.nodeid} is no text: {text!r}")
        promised = self.baseline["value"] if self.baseline is not None else None
        numbers = (*self.values, *(n for n in (self.value, self.low, self.high, promised) if n is not None))
        kinds = self.operators.values()
        numbers += tuple(n for told in (self.metrics, self.paired, *kinds) for n in told.values())
        if not all(map(_is_number, numbers)):
            raise ValueError(f"a value of {self.nodeid} is no number")
        if not all(isinstance(text, str) for text in (*self.notes, *self.fingerprint.get("versions", {}).values())):
            raise TypeError(f"a note or a version of {self.nodeid} is no text")
        if self.waiver is not None and not _WAIVER.issubset(self.waiver):
            raise ValueError(f"a waiver without {', '.join(sorted(_WAIVER - set(self.waiver)))}")


def _is_number(value: object) -> bool:
    """That is finite, and no int of JSON that is too large for a float."""
    return isinstance(value, float | int) and not isinstance(value, bool) and abs(value) < _LARGEST


# The outcome of a test that was started and never ended.
UNFINISHED = "unfinished"
# The outcome of a test that would have failed by nothing but waived regressions; to pytest it fails as expected.
WAIVED = "waived"


@dataclass(frozen=True)
class TestRecord:
    """A test: passed, failed, error, skipped, waived or unfinished; `reason` says why where it did not pass. Seconds.

    `case` is the id of the case it is about, None for a test about none; `attempts` counts how often it was tried;
    `measures` tells whether it asked for measurements, which it then has to judge. `evidence` is the folder with what was kept
    of its failure, from that of the results. `session` is the one of the run's sessions that ran it, counted from 1.
    """

    nodeid: str
    outcome: str
    duration: float
    reason: str = ""
    results: tuple[Result, ...] = ()
    case: str | None = None
    attempts: int = 0
    measures: bool = False
    evidence: str | None = None
    session: int = 1

    @property
    def settled(self) -> bool:
        """Whether a run that goes on has nothing to gain from it: it passed, or something was measured that is not good.

        What was measured once counts, an interval across its limit too: whoever may ask until the answer is pleasant
        has no evidence. A pass that was measured blind is none that a gate takes: only another session can make it one.
        """
        if {result.outcome for result in self.results} - {Outcome.PASS.value, Outcome.ERROR.value}:
            return True
        return self.outcome in ("passed", WAIVED) and not any(result.blind for result in self.results)

    @property
    def broke(self) -> bool:
        """Whether it went wrong in a way that none of its results tells, as in what is cleaned up after them."""
        if self.outcome in ("passed", "skipped", WAIVED):
            return False
        told = {result.outcome for result in self.results} - {Outcome.PASS}
        return Outcome.ERROR not in told if self.outcome == "error" else not told

    __test__ = False  # not a test class, whatever pytest reads into its name

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], results: Iterable[Result]) -> TestRecord:
        """Raises TypeError or ValueError for what is no test."""
        test = cls(**{**data, "results": tuple(results)})
        texts = (test.nodeid, test.outcome, test.reason, "" if test.case is None else test.case)
        if not all(isinstance(text, str) for text in texts):
            raise TypeError(f"nodeid, outcome, reason or case of {test.nodeid} is no text")
        if not _is_number(test.duration) or type(test.attempts) is not int or type(test.measures) is not bool:
            raise TypeError(f"duration, attempts or measures of {test.nodeid} is of another kind")
        return test

    def to_dict(self, *, with_results: bool = True) -> dict[str, Any]:
        fields = asdict(self)
        if not with_results:
            del fields["results"]
        return fields
