"""Decide: a verdict for every cell, in a sentence that can be repeated, and whether the release is blocked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_llamaperf.detection.confirming import Confirmation
from pytest_llamaperf.detection.readings import Cell, loss_of, some
from pytest_llamaperf.detection.replaying import Standing
from pytest_llamaperf.detection.rule import Allowance
from pytest_llamaperf.metrics import Better
from pytest_llamaperf.verdicts import Outcome
from pytest_llamaperf.wording import counted


@dataclass(frozen=True)
class CellVerdict:
    """Of one cell, by its latest evidence. Losses are relative, negative for gains.

    low, high   each end at the confidence of the rule, not corrected for how many cells were looked at
    pairs       of fresh restarts; 0 where only the screen was needed
    settles     pairs after which it would be settled, should the truth be what was seen; None if it is settled
    hindrance   why no more restarts were made, where that is the reason
    """

    cell: Cell
    outcome: Outcome
    loss: float
    low: float
    high: float
    pairs: int
    screened: tuple[int, int]
    allowance: Allowance
    against: str
    settles: int | None = None
    hindrance: str | None = None

    @property
    def reason(self) -> str:
        """One sentence: how much, of what, on what evidence, and what is allowed."""
        return f"{self._change} {self._evidence}; {self.conclusion}"

    def __str__(self) -> str:
        return f"{self.cell.case}: {self.outcome}: {self.reason}"

    @property
    def _change(self) -> str:
        higher, metric = self.cell.metric.better is Better.HIGHER, self.cell.metric
        if self.loss >= 0:
            verb, of = ("lost", "of") if higher else ("added", "to")
        else:
            verb, of = ("gained", "of") if higher else ("saved", "of")
        return f"{verb} {_percent(abs(self.loss))} % ({self._interval}) {of} {metric}"

    @property
    def _interval(self) -> str:
        better, worse = ("gained", "lost") if self.cell.metric.better is Better.HIGHER else ("saved", "added")
        if self.low < 0 < self.high:
            return f"{_percent(-self.low)} % {better} to {_percent(self.high)} % {worse}"
        ends = sorted((abs(self.low), abs(self.high)))
        return f"{_percent(ends[0])} to {_percent(ends[1])} %"

    @property
    def _evidence(self) -> str:
        if self.pairs:
            return f"in {counted(self.pairs, 'pair')} of fresh restarts with {self.against}"
        before, after = self.screened
        return f"in {counted(after, 'restart')} against {before:,} of {self.against}"

    @property
    def conclusion(self) -> str:
        """What follows from the evidence, without the numbers."""
        allowed, bound = (f"{_percent(share)} %" for share in (self.allowance.allowed, self.allowance.bound))
        match self.outcome:
            case Outcome.REGRESSION:
                return f"allowed is {allowed}"
            case Outcome.PASS:
                return f"a loss of {bound} or more is excluded"
            case Outcome.SUSPECT:
                return "fresh restarts of both will tell"
            case _:
                open_question = f"neither a loss beyond {allowed} nor one below {bound} is proven"
                more = f": about {counted(self.settles, 'pair')} would tell" if self.settles else ""
                why = f" ({self.hindrance})" if self.hindrance else ""
                return f"{open_question}{more}{why}"


@dataclass(frozen=True)
class Decision:
    """Of a release. `restarts` were spent on top of the screen; `stale` says why the screen itself is in doubt."""

    verdicts: tuple[CellVerdict, ...]
    restarts: int
    stale: str | None = None

    @property
    def blocked(self) -> bool:
        """A regression is proven. Nothing else blocks, and not everything else releases: see `released`."""
        return bool(self.having(Outcome.REGRESSION))

    @property
    def released(self) -> bool:
        """Every cell passed: what is open or noisy is no evidence."""
        return len(self.having(Outcome.PASS)) == len(self.verdicts)

    def having(self, outcome: Outcome) -> tuple[CellVerdict, ...]:
        return tuple(verdict for verdict in self.verdicts if verdict.outcome is outcome)

    @property
    def reason(self) -> str:
        """One sentence for all cells, the largest proven loss first."""
        if lost := self.having(Outcome.REGRESSION):
            worst = max(lost, key=lambda verdict: verdict.loss)
            return (
                f"blocked: {len(lost):,} of {counted(len(self.verdicts), 'cell')} lost more than is allowed, "
                f"most of all {worst.cell.case}: {worst.reason}"
            )
        told = [
            f"{len(group):,} {words}"
            for group, words in (
                (self.having(Outcome.SUSPECT), "still suspect"),
                (self.having(Outcome.INCONCLUSIVE), "too noisy to tell"),
            )
            if group
        ]
        passed = f"{len(self.having(Outcome.PASS)):,} of {counted(len(self.verdicts), 'cell')} passed"
        return ", ".join([f"no regression is proven: {passed}", *told])


def decide(confirmation: Confirmation) -> Decision:
    """At any time: cells whose fresh restarts are still to come are suspects."""
    screening, standing = confirmation.screening, confirmation.standing
    reach = standing.loss.reach(screening.rule.confidence)
    low, high = standing.loss.estimate - reach, standing.loss.estimate + reach
    waiting = standing.open if standing.orders else frozenset()
    verdicts = []
    for number, cell in enumerate(screening.cells):
        outcome = (
            Outcome.REGRESSION
            if number in standing.found
            else Outcome.SUSPECT
            if number in waiting
            else Outcome.PASS
            if high[number] < screening.limits.bound[number]
            else Outcome.INCONCLUSIVE
        )
        before, after = (
            int((side[number] == side[number]).sum()) for side in (screening.baseline, screening.candidate)
        )
        is_open = outcome is Outcome.INCONCLUSIVE
        verdicts.append(
            CellVerdict(
                cell=cell,
                outcome=outcome,
                loss=loss_of(cell, float(standing.loss.estimate[number])),
                low=loss_of(cell, float(low[number])),
                high=loss_of(cell, float(high[number])),
                pairs=int(standing.pairs[number]),
                screened=(before, after + int(standing.again[number])),
                allowance=screening.rule.allowance(cell.metric),
                against=screening.against,
                settles=_settles(confirmation, standing, number) if is_open else None,
                hindrance=_hindrance(confirmation, standing, number) if is_open else None,
            )
        )
    return Decision(tuple(verdicts), len(confirmation.restarts), _stale(standing, [v.cell for v in verdicts]))


def _hindrance(confirmation: Confirmation, standing: Standing, number: int) -> str | None:
    failure = confirmation.failures.get(confirmation.screening.cells[number].engine)
    return failure or ("the budget of restarts is spent" if number in standing.open else None)


def _settles(confirmation: Confirmation, standing: Standing, number: int) -> int | None:
    """Pairs whose error is small enough for either proof, the sooner one; None where that is beyond any patience."""
    screening = confirmation.screening
    rule, seen = screening.rule, float(standing.loss.estimate[number])
    pairs = int(standing.pairs[number])
    # Error of one pair: of those made, or of two restarts.
    one = float(standing.loss.error[number]) * math.sqrt(pairs) if pairs else 0.0
    one = one or math.sqrt(2 * float(screening.noise.variance[number]))
    above, below = seen - float(screening.limits.allowed[number]), float(screening.limits.bound[number]) - seen
    # 3.5 errors are a proof beyond what is allowed among some 20 suspects, 1.7 one below the bound.
    proofs = ((3.5, above, rule.proving), (1.7, below, rule.looks[0]))
    ways = [max(math.ceil((errors * one / room) ** 2), least) for errors, room, least in proofs if room > 0]
    found = max(min(ways), pairs + 1)
    return found if found <= 4 * rule.looks[-1] else None


def _stale(standing: Standing, cells: Sequence[Cell]) -> str | None:
    if not standing.cut:
        return None
    left = [cell for n, cell in enumerate(cells) if n in standing.suspects]
    return (
        f"{counted(len(left) + standing.cut, 'cell')} of {len(cells):,} look slower ({some(left)}): "
        "that many are seldom real, so measure the baseline again on this machine"
    )


def _percent(share: float) -> str:
    """In percent: 3.1, 12 and 0.5."""
    return f"{share * 100:.1f}".removesuffix(".0")
