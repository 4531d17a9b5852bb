"""A verdict on every pair, by what kind of evidence it is.

Measured: screened by the rule of `detection`. Restarts that were made at different times make suspects at most; a regression
is proven on fresh restarts of both alone. Predicted: exact. Published, and whatever else is a single value: told, not judged.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from pytest_llamaperf.comparing.blame import Phase, blame
from pytest_llamaperf.comparing.likeness import KINDS, Difference
from pytest_llamaperf.comparing.pairing import Pair
from pytest_llamaperf.detection.deciding import CellVerdict
from pytest_llamaperf.detection.readings import Cell
from pytest_llamaperf.detection.rule import Rule
from pytest_llamaperf.detection.screening import RULE, screen_rows
from pytest_llamaperf.measurements import Source
from pytest_llamaperf.metrics import Better, Metric
from pytest_llamaperf.observations import Observation
from pytest_llamaperf.verdicts import Outcome
from pytest_llamaperf.wording import amount, counted

# There is no second look at cached restarts, so the first one has to be as strict as that.
SCREEN = replace(RULE, suspicious=RULE.second)

# Setting of a prediction -> iteration and operator that it is about. Where two tables differ in how they were timed, the
# operator's move is none of the product's.
TIMED_OTHERWISE = {"decode_attention": ("decode", "attention")}

# Units of answers, not of speed: more restarts would not tell more of them.
_SCORES = ("fraction", "tokens", "1")

_DIRECTIONS = {better.value for better in Better}


@dataclass(frozen=True)
class Screened:
    """By which rule; `against` names the side before in sentences."""

    rule: Rule
    against: str


class Compared(NamedTuple):
    """One metric of one case on both sides, with its verdict. A tuple, for there may be a hundred thousand.

    loss       relative, of what was there before: 0.03 is 3 % worse, negative is better; None where there is no ratio
    low, high  of the loss, each end at 95 % confidence; None where nothing tells how much values vary
    worse      logarithm of the ratio, more is worse: of two swapped sides exactly the negative
    why        what decides, where it is not the screen
    screened   of measurements with restarts enough
    allowed    differences that were allowed by name
    """

    before: Observation
    after: Observation
    outcome: Outcome
    worse: float | None
    loss: float | None
    low: float | None = None
    high: float | None = None
    why: str = ""
    screened: Screened | None = None
    allowed: tuple[Difference, ...] = ()

    @property
    def case(self) -> str:
        return self.after.case

    @property
    def metric(self) -> str:
        return self.after.metric

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Of a prediction: what moved in its iterations."""
        return blame(self.metric, self.before.operators, self.after.operators, _aside(self.allowed))

    @property
    def reason(self) -> str:
        """One sentence: how much, on what evidence, and what follows."""
        return f"{self._change}; {self.why}" if self.screened is None else self._screen_verdict(self.screened).reason

    @property
    def conclusion(self) -> str:
        """The last part of the sentence: what follows, without the numbers."""
        return self.why if self.screened is None else self._screen_verdict(self.screened).conclusion

    def _screen_verdict(self, screened: Screened) -> CellVerdict:
        loss, low, high = (0.0 if number is None else number for number in (self.loss, self.low, self.high))
        return CellVerdict(
            cell=_cell(self.after),
            outcome=self.outcome,
            loss=loss,
            low=low,
            high=high,
            pairs=0,
            screened=(len(self.before.values), len(self.after.values)),
            allowance=screened.rule.allowance(_metric(self.after)),
            against=screened.against,
            hindrance=self.why or None,
        )

    @property
    def _change(self) -> str:
        metric, unit = self.metric, self.after.unit
        if self.loss is None:
            return f"{metric} {amount(self.before.value, unit)} before, {amount(self.after.value, unit)} after"
        if not self.loss:
            return f"{metric} is the same"
        if self.after.better == Better.HIGHER:
            verb, of = ("lost", "of") if self.loss > 0 else ("gained", "of")
        else:
            verb, of = ("added", "to") if self.loss > 0 else ("saved", "of")
        return f"{verb} {abs(self.loss) * 100:.1f} % {of} {metric}"


Allowed = Mapping[int, tuple[Difference, ...]]


def judge_all(
    pairs: Sequence[Pair], allowed: Allowed, earlier: Iterable[Observation], against: str, rule: Rule = SCREEN
) -> list[Compared]:
    """`allowed` are differences by the number of the pair, `against` names the side before.

    earlier  more measurements of the same cases: only how much restarts of one run differ is learned from them
    """
    have = [_has_restarts(pair, rule) for pair in pairs]
    return [
        *_screened([n for n, enough in enumerate(have) if enough], pairs, allowed, _history(earlier), against, rule),
        *(_single(pairs[n], allowed.get(n, ()), rule) for n, enough in enumerate(have) if not enough),
    ]


def _screened(
    numbers: Sequence[int], pairs: Sequence[Pair], allowed: Allowed, history: _History, against: str, rule: Rule
) -> Iterator[Compared]:
    """Measured pairs with restarts enough. What noise is usual is learned from all of them together."""
    if not numbers:
        return
    import numpy as np

    rows = [
        (_cell(after), before.values, after.values, history.get(_series(after), ()) if history else ())
        for before, after in (pairs[number] for number in numbers)
    ]
    screening = screen_rows(rows, rule, against)
    loss, by = screening.loss, Screened(rule, against)
    reach = loss.reach(rule.confidence)
    higher = np.array([cell.metric.better is Better.HIGHER for cell in screening.cells])
    losses = (
        np.where(higher, -np.expm1(-logs), np.expm1(logs)).tolist()
        for logs in (loss.estimate, loss.estimate - reach, loss.estimate + reach)
    )
    judged = zip(numbers, screening.outcomes, loss.estimate.tolist(), *losses, strict=True)
    for number, outcome, worse, relative, low, high in judged:
        before, after = pairs[number]
        differences = allowed.get(number, ())
        hindrance = _kinds(differences) if differences else ""
        verdict = Outcome.INCONCLUSIVE if hindrance else outcome
        yield Compared(before, after, verdict, worse, relative, low, high, hindrance, by, differences)


def _single(pair: Pair, differences: tuple[Difference, ...], rule: Rule) -> Compared:
    """Everything that has no interval."""
    before, after = pair
    if not _is_quantity((before.value, after.value, *before.values, *after.values), after.unit):
        impossible = _impossible(pair)
        return Compared(before, after, Outcome.ERROR, None, None, why=impossible, allowed=differences)
    if after.better not in _DIRECTIONS or not before.value:
        why = "no direction of it is better" if after.better not in _DIRECTIONS else "there is no share of nothing"
        return Compared(before, after, Outcome.INCONCLUSIVE, None, None, why=why, allowed=differences)
    sign = 1.0 if after.better == Better.LOWER else -1.0
    loss = sign * (after.value - before.value) / before.value
    worse = sign * (math.log(after.value) - math.log(before.value)) if after.value else -sign * math.inf
    if why := _kinds(differences):
        outcome = Outcome.INCONCLUSIVE
    elif after.source == Source.PREDICTED:
        outcome, why = _predicted(pair, loss, _aside(differences), rule)
    else:
        outcome, why = Outcome.INCONCLUSIVE, _why_open(pair, rule)
    return Compared(before, after, outcome, worse, loss, why=why, allowed=differences)


def _predicted(pair: Pair, loss: float, aside: Collection[tuple[str, str]], rule: Rule) -> tuple[Outcome, str]:
    """A prediction repeats to the bit, so its loss is exact; it holds if it holds without what is not to be blamed."""
    allowed = rule.allowance(_metric(pair.after)).allowed
    lost = loss > allowed
    if aside:
        phases = blame(pair.after.metric, pair.before.operators, pair.after.operators, aside)
        if any(phase.aside and (phase.slower_without_aside > allowed) != lost for phase in phases):
            return Outcome.INCONCLUSIVE, "that turns on an operator which the two tables timed in different ways"
    return (Outcome.REGRESSION if lost else Outcome.PASS), _exact(allowed, lost, loss > 0)


@lru_cache
def _exact(allowed: float, lost: bool, worse: bool) -> str:
    if lost:
        return f"the predictions are exact, and allowed is {allowed * 100:.3g} %"
    return "the predictions are exact" + (f", and allowed is a loss of {allowed * 100:.3g} %" if worse else "")


def _why_open(pair: Pair, rule: Rule) -> str:
    if pair.after.source == Source.PUBLISHED:
        return "both are single published values: how much such values vary is not known, so nothing follows"
    if pair.after.unit in _SCORES:
        return "two runs' scores are not paired by document, so nothing follows: compare both in one run (docs/accuracy.md)"
    have = f"{counted(_restarts(pair.before), 'restart')} before and {_restarts(pair.after)} after"
    return f"{have}, and {rule.least_baseline} and {rule.least_candidate} are needed to see how much restarts differ"


def _kinds(differences: Sequence[Difference]) -> str:
    """Why nothing can follow from a comparison of different kinds of values, allowed as it is."""
    different = [each.field for each in differences if each.field in KINDS]
    return f"they differ in {' and '.join(different)}, so nothing follows about the version" if different else ""


def _aside(differences: Sequence[Difference]) -> Collection[tuple[str, str]]:
    return [TIMED_OTHERWISE[each.field] for each in differences if each.field in TIMED_OTHERWISE]


def _impossible(pair: Pair) -> str:
    for name, side in zip(("before", "after"), pair, strict=True):
        for value in (side.value, *side.values):
            if not _is_quantity((value,), side.unit):
                return f"{value:g} {name} is no quantity: finite numbers above 0 are compared"
    return ""


def _is_quantity(values: Sequence[float], unit: str) -> bool:
    """Looked at one by one only where a sum does not tell: it is finite of nothing else, but for what overflows."""
    least = min(values)
    positive = least > 0 or (least == 0 and unit in _SCORES)
    return positive and (math.isfinite(sum(values)) or all(map(math.isfinite, values)))


def _has_restarts(pair: Pair, rule: Rule) -> bool:
    before, after = pair
    return (
        len(before.values) >= rule.least_baseline
        and len(after.values) >= rule.least_candidate
        and before.source == after.source == Source.MEASURED
        and after.unit not in _SCORES
        and after.better in _DIRECTIONS
        and _is_quantity((before.value, after.value, *before.values, *after.values), after.unit)
    )


def _restarts(observation: Observation) -> int:
    return len(observation.values) or 1


_Series = tuple[str, str, str]
_History = Mapping[_Series, Sequence[Sequence[float]]]


def _series(observation: Observation) -> _Series:
    return (observation.harness, observation.case, observation.metric)


def _history(earlier: Iterable[Observation]) -> _History:
    """Restarts of each earlier run."""
    found: dict[_Series, list[Sequence[float]]] = {}
    for one in sorted(earlier, key=lambda each: (each.when or "", each.run, each.values)):
        if one.source == Source.MEASURED and len(one.values) > 1 and all(0 < value < math.inf for value in one.values):
            found.setdefault(_series(one), []).append(one.values)
    return found


def _cell(observation: Observation) -> Cell:
    return Cell(observation.harness, observation.case, _metric(observation))


def _metric(observation: Observation) -> Metric:
    return _metric_of(observation.metric, observation.unit, observation.better)


@lru_cache
def _metric_of(name: str, unit: str, better: str) -> Metric:
    return Metric(name, unit, Better(better), name)
