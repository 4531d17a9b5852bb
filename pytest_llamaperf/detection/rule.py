"""The rule in numbers: what may be lost, how sure a verdict has to be, and how many restarts it may cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.metrics import Metric


@dataclass(frozen=True)
class Allowance:
    """Of one metric, as relative losses.

    allowed  more than this, proven, is a regression
    least    a loss that would matter: a cell in which it cannot be excluded may become a suspect
    bound    less than this, proven, is a pass
    """

    allowed: float = 0.005
    least: float = 0.02
    bound: float = 0.03

    def __post_init__(self) -> None:
        if not 0 <= self.allowed < self.least <= self.bound < 1:
            raise UsageError(
                f"allowed {self.allowed:g}, least {self.least:g} and bound {self.bound:g} must grow from 0 to 1"
            )


# Restarts differ in time to first token three to six times as much as in throughput.
FIRST_TOKEN = Allowance(0.01, 0.02, 0.06)


@dataclass(frozen=True)
class Rule:
    """Defaults were tuned on simulated releases; `benchmarks/detection/README.md` shows what they reach.

    allowances  metric's name -> what it may lose; others are judged by `usual`, times to first token by FIRST_TOKEN
    spurious    the chance to block a release that lost nothing
    overstrict  the chance to block a release in which every loss is just the allowed one
    suspicious, again, second, doubt
                a cell is a suspect if a restart noise of its size would look as bad with less than this chance, and
                `least` cannot be excluded at 1 - doubt; it then gets so many more restarts of the candidate, and has
                to be suspicious at `second` with them
    capped      share of cells that may be suspects; with more of them, the baseline is stale or the machine unwell
    looks       pairs of fresh restarts after which a suspect is looked at
    spending    share of the two chances spent at each look; at one where it is 0, suspects are only given up
    agreeing    pairs that have to show more than half of the loss, and more than is allowed, at each look: a mean that
                a second mode or outliers made is not shown by so many
    futile      a suspect that has less than this chance to be a regression at the last look gets no more restarts
    settled     ... if that it lost less than the bound is proven already
    budget      restarts a cell, on average over all cells, for second looks and pairs
    likely      suspects that have this chance to be a regression after some pairs are followed beyond the budget
    outliers    share of earlier restarts that may be outliers, and are not counted as noise
    floor       least noise of a restart that is believed, relative
    confidence  of each end of an interval
    """

    usual: Allowance = Allowance()
    allowances: Mapping[str, Allowance] = field(default_factory=dict)
    spurious: float = 0.003
    overstrict: float = 0.05
    suspicious: float = 0.25
    again: int = 2
    second: float = 0.15
    doubt: float = 0.1
    capped: float = 0.25
    looks: tuple[int, ...] = (3, 6, 10, 16, 24)
    spending: tuple[float, ...] = (0.0, 0.2, 0.2, 0.2, 0.4)
    agreeing: tuple[int, ...] = (3, 6, 8, 11, 14)
    futile: float = 0.07
    settled: float = 0.05
    budget: float = 0.9
    likely: float = 0.5
    outliers: float = 0.12
    floor: float = 0.003
    confidence: float = 0.95
    least_baseline: int = 3
    least_candidate: int = 2

    def __post_init__(self) -> None:
        if not len(self.looks) == len(self.spending) == len(self.agreeing) > 0:
            raise UsageError("looks, spending and agreeing need one entry for each look")
        if sorted(set(self.looks)) != list(self.looks) or self.looks[0] < 2:
            raise UsageError(f"looks are numbers of pairs that grow, from 2 on; {self.looks} do not")
        if min(self.spending) < 0 or not self.spending[-1] or sum(self.spending) > 1 + 1e-9:
            raise UsageError("spending is a share of the chance for each look, above 0 at the last and 1 in all")
        for name in ("spurious", "overstrict", "suspicious", "second"):
            if not 0 < getattr(self, name) < 0.5:
                raise UsageError(f"{name} is a chance between 0 and 0.5; {getattr(self, name):g} is not")

    @property
    def proving(self) -> int:
        """Pairs at the first look that can prove a loss."""
        return next(pairs for pairs, share in zip(self.looks, self.spending, strict=True) if share)

    def allowance(self, metric: Metric) -> Allowance:
        default = FIRST_TOKEN if metric.name.startswith("ttft") else self.usual
        return self.allowances.get(metric.name, default)
