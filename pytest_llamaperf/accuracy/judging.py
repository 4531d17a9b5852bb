"""The verdict on a candidate's scores against its reference's, as a person reads it and as run.json keeps it."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_llamaperf.accuracy.paired import Comparison, compare, pair_scores
from pytest_llamaperf.accuracy.power import POWER, Plan, refuse_underpowered
from pytest_llamaperf.accuracy.scores import Scores
from pytest_llamaperf.cases import Case
from pytest_llamaperf.catalog.tasks import Evaluation, evaluation_named
from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.measurements import Source
from pytest_llamaperf.metrics import ACCURACY
from pytest_llamaperf.records import Result
from pytest_llamaperf.verdicts import Outcome

SHOWN = 3  # of the worst documents, in a message


@dataclass(frozen=True)
class Judgement:
    """A candidate compared with a reference, which may be stored."""

    candidate: Scores
    reference: Scores
    comparison: Comparison

    @property
    def outcome(self) -> Outcome:
        return self.comparison.outcome

    @property
    def reason(self) -> str:
        return f"{self.candidate.case.work} against {self.reference.case.recipe} {self.reference.case.layout}: {self.comparison.reason}"

    def __str__(self) -> str:
        """Task, loss, interval, what changed, and the documents that lost most."""
        found, reference = self.comparison, self.reference
        stored = f" ({reference.stored})" if reference.stored else ""
        told = {
            "reference": f"{found.reference * 100:.1f} % right: {reference.case}{stored}",
            "measured": f"{found.candidate * 100:.1f} % right: {found.reason}",
            **{f"lost {n + 1}": self._shown(name) for n, (name, _) in enumerate(found.worst[:SHOWN])},
            "to do": self._advice,
        }
        lines = [f"    {name:<10} {text}" for name, text in told.items()]
        return "\n".join(
            [f"{self.candidate.case}", f"  accuracy of {self.candidate.case.work}: {self.outcome}", *lines]
        )

    def result(self, nodeid: str) -> Result:
        """`low` and `high` are the reference's mean with the interval of the difference; the tolerance is the margin."""
        found = self.comparison
        return Result(
            nodeid,
            self.candidate.case.to_dict(),
            ACCURACY.name,
            ACCURACY.unit,
            ACCURACY.better.value,
            Source.MEASURED.value,
            (found.candidate,),
            found.candidate,
            max(0.0, found.reference + found.low),
            min(1.0, found.reference + found.high),
            {
                "value": found.reference,
                "tolerance": found.margin / found.reference if found.reference else 0.0,
                "source": Source.MEASURED.value,
                "reference": f"{self.reference.case} on the same documents"
                + (f", of {self.reference.stored}" if self.reference.stored else ""),
            },
            self.outcome.value,
            self.reason,
            fingerprint=self.candidate.fingerprint.to_dict(),
            paired=found.counts,
        )

    def _shown(self, name: str) -> str:
        document = self.candidate.documents[name]
        return f"{document.text!r}: wanted {document.target!r}, got {document.answer!r} ({name[:12]})"

    @property
    def _advice(self) -> str:
        match self.outcome:
            case Outcome.REGRESSION:
                return "look at the documents above, then at the recipe, its calibration and the checkpoint"
            case Outcome.INCONCLUSIVE:
                return "too few documents differ too much to say; take more of them, or a wider margin with a reason"
            case _:
                return "nothing"


def judged(candidate: Scores, reference: Scores) -> Judgement:
    """Raises UsageError for scores of other questions, naming what is different."""
    different = [
        name
        for name in sorted(candidate.protocol.keys() | reference.protocol.keys())
        if candidate.protocol.get(name) != reference.protocol.get(name)
    ]
    if different:
        raise UsageError(f"{candidate.case} and {reference.case} were asked other questions: {', '.join(different)}")
    wanted = evaluation_named(str(candidate.case.work))
    pairing = pair_scores(
        {name: found.score for name, found in candidate.documents.items()},
        {name: found.score for name, found in reference.documents.items()},
        {name: found.cluster for name, found in candidate.documents.items()},
    )
    return Judgement(candidate, reference, compare(pairing, margin=wanted.margin_for(reference.case.model)))


def plan_of(reference: Case) -> Plan:
    """What a comparison with a case on its task will be able to tell, before it is run. Raises UsageError.

    The margin is the reference's: a candidate may be a checkpoint that nobody has heard of.
    """
    wanted: Evaluation = evaluation_named(str(reference.work))
    return Plan(
        wanted.count,
        wanted.count / wanted.groups,
        wanted.likeness,
        wanted.discordance,
        margin=wanted.margin_for(reference.model),
    )


def refuse_weak(reference: Case) -> None:
    """Raises UsageError for a task whose documents could not show the margin: a gate of it would be luck."""
    refuse_underpowered(str(reference), plan_of(reference), POWER)
