"""Before a run: will so many documents tell a good candidate from a bad one?

Documents are taken to differ in bunches as large as the design effect, each bunch lost or gained as one. The outcome
follows from how many bunches are lost and gained, which are trinomial: so chances are added up, not simulated.
Independent documents are bunches of one, for which this is exact. For templates it is within 0.07 of simulations where
power is above one half, and mostly too low where it is small; `benchmarks/accuracy/level_and_power.py` shows both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from pytest_llamaperf.accuracy.paired import ALPHA, MARGIN, ends, mean_size, refuse_limits
from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.wording import counted

if TYPE_CHECKING:
    from pytest_llamaperf.accuracy.paired import Numbers

POWER = 0.8
DISCORDANCE = 0.05
LIKENESS = 0.1  # of documents from one template, an assumption; it has no influence on those without
MOST = 2**30  # documents: beyond any data set


@dataclass(frozen=True)
class Chances:
    """Of two of the three outcomes; what is missing to 1 is inconclusive."""

    passed: float
    regression: float


@dataclass(frozen=True)
class Plan:
    """A comparison that has not been run.

    size         documents in the cluster of a document, on average; `planned` computes it
    likeness     intraclass correlation of the differences: 0 of independent documents, 1 if a template differs as one
    discordance  share of documents that differ though nothing is wrong, as many better as worse;
                 of graded scores, the mean squared difference
    """

    documents: int
    size: float = 1.0
    likeness: float = LIKENESS
    discordance: float = DISCORDANCE
    margin: float = MARGIN
    alpha: float = ALPHA

    def __post_init__(self) -> None:
        refuse_limits(self.margin, self.alpha)
        if not (self.documents >= 1 and 1 <= self.size < math.inf):
            raise UsageError(f"{self.documents:,} documents in groups of {self.size:g} cannot be")
        if not 0 <= self.likeness <= 1:
            raise UsageError(f"likeness is a correlation from 0 to 1; {self.likeness:g} is not")
        if not 0 < self.discordance <= 1:
            raise UsageError(f"a discordance is a share of documents, above 0; {self.discordance:g} is not")

    @property
    def design_effect(self) -> float:
        """Variance of the difference over that of independent documents (Kish, Survey Sampling, 1965)."""
        return 1 + self.likeness * (self.size - 1)

    @cached_property
    def power(self) -> float:
        """The chance that a candidate which is truly equal passes."""
        return self.chances(0.0).passed

    def caught(self, times: float = 2.0) -> float:
        """The chance that a candidate which truly loses so many times the margin is called a regression."""
        return self.chances(times * self.margin).regression

    def chances(self, loss: float) -> Chances:
        """Of a candidate that truly loses so much of the score, on top of what differs anyway.

        Raises UsageError when that would be more than all documents.
        """
        import numpy as np

        differ = self.discordance + loss
        if not 0 <= loss <= 1 - self.discordance:
            raise UsageError(f"no candidate loses {loss:g} where {self.discordance:g} of the documents differ anyway")
        bunches = round(self.documents / self.design_effect)
        if self.documents < 2 * self.size or bunches < 2:
            return Chances(0.0, 0.0)
        is_lost = (self.discordance / 2 + loss) / differ
        reach = 7 * math.sqrt(bunches * differ) + 7  # further out lies less than 1e-9
        step = max(1, round(reach / 150))  # of many bunches not every number is tried: an error below 0.003
        around = np.arange(-math.ceil(reach / step), math.ceil(reach / step) + 1) * float(step)
        differing = np.floor(bunches * differ + around)[:, None]
        lost = np.floor(differing * is_lost + around)
        chance = _binomial(differing, bunches, differ) * _binomial(lost, differing, is_lost)
        differing, lost, chance = (cells[chance > 0] for cells in np.broadcast_arrays(differing, lost, chance))
        low, high = self._ends(lost, differing - lost, bunches)
        whole = chance.sum()
        return Chances(
            float(chance[low > -self.margin].sum() / whole), float(chance[high < -self.margin].sum() / whole)
        )

    def documents_for(self, power: float = POWER) -> int:
        """How many documents have that power, in groups of the same size. Raises UsageError if a billion have not."""
        found = _least(lambda documents: replace(self, documents=documents).power >= power, MOST)
        if found is None:
            raise UsageError(f"no number of documents passes an equal candidate with a chance of {power:.0%}")
        return found

    def margin_for(self, power: float = POWER) -> float | None:
        """The margin, in whole tenths of a point, at which these documents have that power; None if none has."""
        tenths = _least(lambda tenths: replace(self, margin=tenths / 1000).power >= power, 1000)
        return None if tenths is None else tenths / 1000

    def _ends(self, lost: Numbers, gained: Numbers, bunches: int) -> tuple[Numbers, Numbers]:
        """The interval of `paired.interval`, with a bunch as the unit.

        Sums of clusters that hold several bunches are closer to normal: a fourth moment of 3 / clusters is added for
        pairs of bunches in one cluster.
        """
        mean = (gained - lost) / bunches
        second, third, fourth = (
            lost * (-1 - mean) ** power + gained * (1 - mean) ** power + (bunches - lost - gained) * (-mean) ** power
            for power in (2, 3, 4)
        )
        second = second / (1 - 1 / bunches)
        clusters = self.documents / self.size
        fourth = fourth + 3 * max(1 / clusters - 1 / bunches, 0.0) * second**2
        two_more = self.size / self.design_effect**2
        return ends(mean, (second, third, fourth), two_more, bunches, clusters, self.alpha)


def planned(sizes: Sequence[int], **assumed: float) -> Plan:
    """The plan for templates of so many documents each; `assumed` are fields of Plan."""
    import numpy as np

    return Plan(sum(sizes), mean_size(np.array(sizes, dtype=float)), **assumed)


def refuse_underpowered(task: str, plan: Plan, power: float = POWER) -> None:
    """Raises UsageError when an equal candidate would too rarely pass, and says what would do."""
    if plan.power >= power:
        return
    needed = plan.documents_for(power)
    if needed <= plan.documents:  # whole numbers of documents make power a saw; it was reached before
        return
    wider = plan.margin_for(power)
    instead = "" if wider is None else f", or allow a loss of {wider * 100:.1f} points"
    grouped = "" if plan.size == 1 else f", groups of {plan.size:.1f} alike by {plan.likeness:g}"
    raise UsageError(
        f"{task}: on {counted(plan.documents, 'document')} a candidate that is equal passes with a chance of "
        f"{_percent(plan.power)}, {_percent(power)} is asked (allowed loss {plan.margin * 100:.1f} points, "
        f"{plan.discordance * 100:.1f} % of documents differ by chance{grouped}): "
        f"take {needed:,} documents{instead}"
    )


def _percent(share: float) -> str:
    """Rounded down, so that what is too little never reads as enough."""
    return f"{math.floor(share * 100 + 1e-9)} %"


def _least(enough: Callable[[int], bool], most: int) -> int | None:
    """The least number from 1 to `most` that is enough, by halving; None if `most` is not."""
    high = 1
    while not enough(high):
        if high == most:
            return None
        high = min(2 * high, most)
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _binomial(successes: Numbers, trials: Numbers | float, chance: float) -> Numbers:
    """Binomial probabilities; 0 outside the possible. scipy.stats has them too, and takes a second to import."""
    import numpy as np
    from scipy.special import gammaln, xlog1py, xlogy

    possible = (successes >= 0) & (successes <= trials)
    k = np.where(possible, successes, 0)
    n = np.where(possible, trials, 0)
    ways = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    return np.where(possible, np.exp(ways + xlogy(k, chance) + xlog1py(n - k, -chance)), 0.0)
