"""Are the answers as good as others ask? Means over all documents against published targets, each of which has to be reached."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pytest_llamaperf.accuracy.scores import Scores
from pytest_llamaperf.catalog.targets import Target, targets_of
from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.measurements import Source
from pytest_llamaperf.metrics import Better
from pytest_llamaperf.records import Result
from pytest_llamaperf.verdicts import Outcome
from pytest_llamaperf.wording import change


@dataclass(frozen=True)
class Reached:
    """One measure beside its target. There is no interval: who set the target compares means as they are."""

    scores: Scores
    target: Target
    source: str

    @property
    def value(self) -> float:
        return self.scores.measures[self.target.measure]

    @property
    def outcome(self) -> Outcome:
        return Outcome.PASS if self.target.allows(self.value) else Outcome.REGRESSION

    @property
    def reason(self) -> str:
        target = self.target
        least = f"at least {self._told(target.least * target.reference)}"
        most = "" if math.isinf(target.most) else f", at most {self._told(target.most * target.reference)}"
        return (
            f"{target.measure} is {self._told(self.value)}, asked are {least}{most}; the reference has "
            f"{self._told(target.reference)}: {change(self.value, target.reference)}"
        )

    def __str__(self) -> str:
        return f"    {self.outcome:<10} {self.reason}"

    def result(self, nodeid: str) -> Result:
        """The tolerance is what the target allows below its reference."""
        target = self.target
        return Result(
            nodeid,
            self.scores.case.to_dict(),
            target.measure,
            target.unit,
            Better.HIGHER.value if math.isinf(target.most) else None,
            Source.MEASURED.value,
            (self.value,),
            self.value,
            None,
            None,
            {
                "value": target.reference,
                "tolerance": 1 - target.least,
                "source": Source.PUBLISHED.value,
                "reference": self.source,
            },
            self.outcome.value,
            self.reason,
            fingerprint=self.scores.fingerprint.to_dict(),
        )

    def _told(self, value: float) -> str:
        """With the digits of the target: a thousandth of it decides."""
        return f"{value * 100:.4f} %" if self.target.unit == "fraction" else f"{value:.2f} tokens"


def reached(scores: Scores) -> list[Reached]:
    """Raises UsageError where there are no targets, or they are of other documents or measures than these."""
    wanted = targets_of(scores.case)
    if len(scores.documents) != wanted.documents:
        raise UsageError(
            f"{scores.case}: targets are of {wanted.documents:,} documents, and {len(scores.documents):,} were answered"
        )
    missing = [target.measure for target in wanted.targets if target.measure not in scores.measures]
    if missing:
        raise UsageError(
            f"{scores.case}: was not measured: {', '.join(missing)}; there are: {', '.join(scores.measures) or 'none'}"
        )
    return [Reached(scores, target, wanted.source) for target in wanted.targets]


def told(found: list[Reached]) -> str:
    """All measures of an evaluation, for whoever reads that one missed its target."""
    return "\n".join([str(found[0].scores.case), "  targets:", *map(str, found), f"    by         {found[0].source}"])
