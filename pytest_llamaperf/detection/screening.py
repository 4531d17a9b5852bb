"""Screen: which cells look slower? On restarts that exist, so it costs nothing, and so it never blocks a release."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import TYPE_CHECKING

from pytest_llamaperf.detection.evidence import Loss, between
from pytest_llamaperf.detection.noise import Noise, restart_noise
from pytest_llamaperf.detection.readings import (
    Cell,
    Readings,
    Side,
    logarithm_of,
    logarithms_of_all,
    refuse_unlike,
)
from pytest_llamaperf.detection.rule import Rule
from pytest_llamaperf.verdicts import Outcome

if TYPE_CHECKING:
    from pytest_llamaperf.detection.readings import Flags, Numbers

RULE = Rule()


@dataclass(frozen=True, eq=False)
class Limits:
    """The allowances of all cells, as logarithms."""

    allowed: Numbers
    least: Numbers
    bound: Numbers


@dataclass(frozen=True, eq=False)
class Screening:
    """Every cell with its readings, its noise and its limits.

    baseline, candidate  logarithms of the readings, a cell in each row; more is worse
    against              what the baseline is called in sentences: a version, or a pinned release
    """

    cells: tuple[Cell, ...]
    baseline: Numbers
    candidate: Numbers
    noise: Noise
    limits: Limits
    rule: Rule
    against: str

    @cached_property
    def loss(self) -> Loss:
        return between(self.baseline, self.candidate, self.noise)

    @cached_property
    def outcomes(self) -> tuple[Outcome, ...]:
        """Suspect; or else pass where less than the bound was lost for sure, inconclusive where noise hides that."""
        import numpy as np

        suspect = suspicious(self.loss, self.limits, self.rule.suspicious, self.rule.doubt)
        passed = self.loss.estimate + self.loss.reach(self.rule.confidence) < self.limits.bound
        words = (Outcome.INCONCLUSIVE, Outcome.PASS, Outcome.SUSPECT)
        return tuple(words[place] for place in np.where(suspect, 2, passed).tolist())

    @property
    def suspects(self) -> tuple[Cell, ...]:
        return self.having(Outcome.SUSPECT)

    def having(self, outcome: Outcome) -> tuple[Cell, ...]:
        return tuple(cell for cell, got in zip(self.cells, self.outcomes, strict=True) if got is outcome)


def screen(
    baseline: Readings,
    candidate: Readings,
    history: Sequence[Readings] = (),
    rule: Rule = RULE,
    against: str = "the baseline",
) -> Screening:
    """Candidate against baseline, or against the readings of a pinned release: an anchor, which slow creep can't move.

    history  readings of earlier releases, in any order; only the spread within each is used

    Raises UsageError for cells on one side only or with too few restarts, EngineError for impossible readings.
    """
    refuse_unlike(baseline, candidate, {Side.BASELINE: rule.least_baseline, Side.CANDIDATE: rule.least_candidate})
    cells = tuple(sorted(baseline))
    rows = [(cell, baseline[cell], candidate[cell], [old[cell] for old in history if cell in old]) for cell in cells]
    return screen_rows(rows, rule, against)


# A cell with its readings in the baseline, in the candidate, and in each earlier release.
Row = tuple[Cell, Sequence[float], Sequence[float], Sequence[Sequence[float]]]


def screen_rows(rows: Sequence[Row], rule: Rule, against: str) -> Screening:
    """As `screen`, in the order of the rows, whose readings are known to be enough of them, and possible."""
    cells = tuple(row[0] for row in rows)
    earlier = zip_longest(*(row[3] for row in rows), fillvalue=())
    before, after, *more = (
        logarithms_of_all(cells, release) for release in ([row[1] for row in rows], [row[2] for row in rows], *earlier)
    )
    noise = restart_noise([before, after, *more], [cell.metric.name for cell in cells], rule.outliers, rule.floor)
    return Screening(cells, before, after, noise, _limits(cells, rule), rule, against)


def suspicious(loss: Loss, limits: Limits, level: float, doubt: float) -> Flags:
    """It looks worse than noise would at that level, and a loss that matters cannot be excluded."""
    return (loss.chance_of_noise() < level) & (loss.estimate + loss.reach(1 - doubt) > limits.least)


def _limits(cells: Sequence[Cell], rule: Rule) -> Limits:
    """Computed once a metric: there are few of them, and many cells."""
    import numpy as np

    one_of_each = {cell.metric: cell for cell in cells}
    logs = {}
    for metric, cell in one_of_each.items():
        allowance = rule.allowance(metric)
        losses = (allowance.allowed, allowance.least, allowance.bound)
        logs[metric] = tuple(logarithm_of(cell, loss) for loss in losses)
    return Limits(*np.array([logs[cell.metric] for cell in cells]).T)
