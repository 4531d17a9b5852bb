"""May this build be released? Only measured passes say yes, and regressions that are waived; everything else is a reason against."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pytest_llamaperf.cases import CPU
from pytest_llamaperf.measurements import Source
from pytest_llamaperf.records import WAIVED, Result, TestRecord
from pytest_llamaperf.requirements import Requirement
from pytest_llamaperf.verdicts import Outcome
from pytest_llamaperf.waivers import Waivers
from pytest_llamaperf.wording import counted


@dataclass(frozen=True)
class Missing(Requirement):
    """A result that a release has to have and this run has not."""

    why: str


@dataclass(frozen=True)
class Decision:
    """Releasable exactly when there is no reason against it.

    `waived` are the regressions it is released with, as sentences; `missing` is all that `reasons` sum up as not judged, and
    `required` how many results a file of the gate asked for.
    """

    reasons: tuple[str, ...]
    waived: tuple[str, ...] = ()
    missing: tuple[Missing, ...] = ()
    required: int = 0

    @property
    def releasable(self) -> bool:
        return not self.reasons

    @property
    def headline(self) -> str:
        """What follows; `reasons` and `waived` say why."""
        if self.reasons:
            return f"not releasable: {counted(len(self.reasons), 'reason')}"
        if self.waived:
            return f"released with {counted(len(self.waived), 'waiver')}"
        return "releasable: every test is a measured pass"

    @property
    def unasked(self) -> str:
        """What a release without a gate's file is worth, empty with one: a run from another root directory finds none."""
        if self.reasons or self.required:
            return ""
        return "no file of the gate says what has to be judged: promises alone were asked"

    @property
    def remedies(self) -> tuple[str, ...]:
        """What to do, once for each kind of reason that has the same remedy whatever it is about."""
        return tuple(remedy for begin, remedy in _REMEDIES if any(reason.startswith(begin) for reason in self.reasons))

    def __str__(self) -> str:
        """In one sentence."""
        return ": ".join(filter(None, (self.headline, "; ".join(self.reasons or self.waived))))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Decision:
        """Also of a run.json that knew of no waivers.

        Raises TypeError for what is no decision, ValueError for one that contradicts itself.
        """
        missing, required = data.get("missing", []), data.get("required", 0)
        decision = cls(
            _sentences(data["reasons"]),
            _sentences(data.get("waived", [])),
            tuple(Missing(**each) for each in missing),
            required,
        )
        told = [text for each in decision.missing for text in (each.case, each.metric or "", each.place, each.why)]
        _sentences([*told])
        if type(data["releasable"]) is not bool or type(required) is not int:
            raise TypeError("its decision is neither yes nor no")
        if decision.releasable != data["releasable"]:
            raise ValueError("its decision contradicts its reasons")
        return decision

    def to_dict(self) -> dict[str, Any]:
        return {"releasable": self.releasable, **asdict(self)}


def _sentences(told: object) -> tuple[str, ...]:
    """Raises TypeError: an empty mapping is no empty list of reasons."""
    if not isinstance(told, list | tuple) or not all(isinstance(text, str) for text in told):
        raise TypeError("a reason of its decision is no text")
    return tuple(told)


def decide(
    tests: Sequence[TestRecord],
    *,
    not_run: int = 0,
    deselected: Collection[str] = (),
    required: Sequence[Requirement] = (),
    promised: Sequence[Requirement] = (),
    waivers: Waivers | None = None,
) -> Decision:
    """Fails closed: no results, a skipped test and a prediction are reasons as good as a regression.

    `not_run` counts tests that were collected but never ran, after Ctrl-C or --maxfail; `deselected` are ids of cases, one for
    each test about a case that -k, -m or --deselect left out. `required` is what a release has to have, and `promised`
    what baselines hold. A waiver that covers nothing is a reason too, for it says what is not true; so is a regression that was
    waived by one that is gone, or has expired, since its test ended.
    """
    results = [result for test in tests for result in test.results]
    waived = [result for result in results if _is_waived(result)]
    lapsed = [] if waivers is None else [result for result in waived if waivers.covering(result) is None]
    missing = _missing(required, tests, deselected)
    asked = {(each.case, each.metric) for each in missing}
    unjudged = [each for each in _missing(promised, tests, deselected) if (each.case, each.metric) not in asked]
    reasons = [
        *(["nothing was judged"] if not results else []),
        *([f"not run: {counted(not_run, 'test')}"] if not_run else []),
        *([f"deselected: {counted(len(deselected), 'test')}"] if deselected else []),
        *_outcomes(result for result in results if not _is_waived(result)),
        *(f"{each.outcome}: {each}: no waiver covers it any more; it was {each.waived}" for each in lapsed),
        *_not_measured(results),
        *_blind(results),
        *_tests(tests),
        *(waivers.objections(results) if waivers else []),
        *_not_judged(missing, unjudged),
    ]
    told = tuple(f"{each.case['id']}: {each.message}, {each.waived}" for each in waived if each not in lapsed)
    return Decision(tuple(reasons), told, (*missing, *unjudged), len(required))


def other_builds(what: str, parts: Iterable[tuple[str, TestRecord]]) -> list[str]:
    """A reason for each package of which engines of one kind loaded several versions in parts of a run, each named with its
    tests. Installed versions do not tell all; `what` the parts are, as `sessions`."""
    loaded: dict[tuple[str, str], dict[str, str]] = {}
    for part, test in parts:
        for result in test.results:
            if result.source == Source.MEASURED:
                for name, version in result.fingerprint.get("versions", {}).items():
                    loaded.setdefault((str(result.case["engine"]), name), {}).setdefault(str(version), part)
    return [
        f"{what} of this run measured other builds: {engine} loaded {name} "
        + ", ".join(f"{version} in {part}" for version, part in versions.items())
        for (engine, name), versions in loaded.items()
        if len(set(versions.values())) > 1
    ]


# By the words that reasons begin with.
_REMEDIES = (
    ("deselected", "deselected: run the whole suite, without -k, -m and --deselect"),
    ("skipped", "skipped: give the tests what they lack; a test that did not run shows nothing"),
    (
        "no-baseline",
        "no-baseline: promise it in the file that its test names, or, for this machine alone, by a run with --record",
    ),
    ("inconclusive", "inconclusive: measure again with more --restarts, on a machine that does nothing else"),
    ("missing", "missing: `llamaperf run`, with the folder of the run, goes on with these shards"),
    (
        "the session ended early",
        "the session ended early: where it had --results, the same command with --resume goes on",
    ),
    ("predicted, not measured", "predicted, not measured: run on the hardware, without --engine predicted"),
)


def scope(gpu: str, engine: str) -> str:
    """What a decision is not about, empty where nothing is to be said: a CPU says nothing of what is served."""
    if gpu != CPU:
        return ""
    return (
        f"about {engine} on a CPU and nothing else: no GPU was asked, so no build is released for one; "
        "there: pytest suites/ --gpu h200 --gate"
    )


def told_beside(decision: Decision, gpu: str, engine: str) -> tuple[str, ...]:
    """What to do about the reasons of a decision, and what it is not about: wherever it is shown, so that none says more."""
    return tuple(filter(None, (*decision.remedies, scope(gpu, engine), decision.unasked)))


_WORST_FIRST = (
    Outcome.REGRESSION,
    Outcome.ERROR,
    Outcome.INCONCLUSIVE,
    Outcome.SUSPECT,
    Outcome.NO_BASELINE,
    Outcome.PASS,
)


def _is_waived(result: Result) -> bool:
    """Whatever else a result says of a waiver: only a measured regression can have one."""
    return result.waiver is not None and (result.outcome, result.source) == (Outcome.REGRESSION, Source.MEASURED)


def _outcomes(results: Iterable[Result]) -> list[str]:
    """One reason for each result that is not a pass, also for an outcome that only a newer version knows."""
    by_outcome: dict[str, list[str]] = {outcome: [] for outcome in _WORST_FIRST}
    for result in results:
        by_outcome.setdefault(result.outcome, []).append(str(result))
    del by_outcome[Outcome.PASS]
    return [f"{outcome or 'without outcome'}: {what}" for outcome, found in by_outcome.items() for what in found]


def _not_measured(results: Iterable[Result]) -> list[str]:
    judged = Counter(result.source for result in results if result.outcome != Outcome.ERROR)
    return [
        f"{source or 'of unknown source'}, not measured: {counted(count, 'result')}"
        for source, count in judged.items()
        if source != Source.MEASURED
    ]


def _blind(results: Iterable[Result]) -> list[str]:
    """One reason for each cause: a driver that does not answer blinds all results by the dozen.

    What was timed on a GPU and says nothing of its health was seen by nobody.
    """
    causes: dict[str, list[Result]] = {}
    for result in results:
        on_gpu = (
            result.source == Source.MEASURED and result.case.get("hardware") != CPU and result.outcome != Outcome.ERROR
        )
        unseen = "it does not say how the GPUs did" if on_gpu and result.metrics and not result.health else None
        if why := result.blind or unseen:
            causes.setdefault(why, []).append(result)
    return [f"measured blind: {counted(len(found), 'result')}: {why}" for why, found in causes.items()]


def _tests(tests: Sequence[TestRecord]) -> list[str]:
    """What became of tests, but for those that failed or skipped by a result, which is a reason already."""
    told = {r.nodeid for test in tests for r in test.results if r.outcome != Outcome.PASS and not _is_waived(r)}
    reasons = []
    for test in tests:
        if test.outcome in ("passed", WAIVED):
            if test.measures and not test.results:
                reasons.append(f"judged nothing: {test.nodeid}: it measures and checks no promise")
            if test.attempts > 1:
                reasons.append(f"retried: {test.nodeid}: {test.outcome} at attempt {test.attempts}")
        elif test.outcome != "skipped" and (test.broke or test.nodeid not in told):
            reasons.append(f"{test.outcome}: {test.nodeid}{': ' + test.reason if test.reason else ''}")
    return reasons + _skips(test for test in tests if test.outcome == "skipped" and test.nodeid not in told)


def _skips(tests: Iterable[TestRecord]) -> list[str]:
    """One reason for all tests skipped alike, for a cause such as a missing GPU skips them by the dozen."""
    causes = Counter(test.reason for test in tests)
    return [f"skipped: {counted(count, 'test')}: {cause or 'no reason given'}" for cause, count in causes.items()]


def _missing(asked: Iterable[Requirement], tests: Sequence[TestRecord], deselected: Collection[str]) -> list[Missing]:
    judged: set[tuple[str, str | None]] = {
        (str(result.case["id"]), result.metric) for test in tests for result in test.results if result.metric
    }
    judged |= {(test.case, None) for test in tests if test.case and test.outcome == "passed"}
    about: dict[str, list[TestRecord]] = {}
    for test in tests:
        if test.case:
            about.setdefault(test.case, []).append(test)
    return [
        Missing(each.case, each.metric, each.place, _why(about.get(each.case, ()), each.case in deselected))
        for each in asked
        if (each.case, each.metric) not in judged
    ]


def _why(tests: Sequence[TestRecord], deselected: bool) -> str:
    """The cause that is nearest: what became of the tests about the case."""
    for test in tests:
        if test.outcome != "passed":
            return f"{test.outcome}: {test.reason}" if test.reason else test.outcome
    if deselected:
        return "deselected"
    return "its tests judge something else" if tests else "no test about it ran"


def _not_judged(missing: Iterable[Missing], unjudged: Sequence[Missing]) -> list[str]:
    """One reason for each cause, and one for all promises: a run of a part of the suite leaves dozens."""
    causes: dict[str, list[Missing]] = {}
    for each in missing:
        causes.setdefault(each.why, []).append(each)
    reasons = [f"required and not judged: {found[0]}{_others(found[1:])}: {why}" for why, found in causes.items()]
    if unjudged:
        reasons.append(f"promised and not judged: {unjudged[0]}{_others(unjudged[1:])}")
    return reasons


def _others(others: Sequence[Missing]) -> str:
    return f" and {counted(len(others), 'other')}" if others else ""
