"""Is a candidate as right as its reference? Both answered the same documents: they are compared document by document.

The interval of the difference holds its level for few differing documents, for losses that all go one way, and for
documents made from templates, which are right or wrong together. `benchmarks/accuracy/level_and_power.py` measures it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_llamaperf.errors import EngineError, UsageError
from pytest_llamaperf.metrics import Better
from pytest_llamaperf.verdicts import Outcome
from pytest_llamaperf.wording import counted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

MARGIN = 0.01  # one point of a score in [0, 1]
ALPHA = 0.05
WORST = 10  # documents worth reading before anything is decided


@dataclass(frozen=True)
class Scale:
    """What scores are, and how a difference is told.

    largest  how far two scores of one document can differ, None if there is no such bound
    unit     what people call a difference; `step` is one of it
    noun     what is lost or gained one by one, and the two words for it
    """

    better: Better
    largest: float | None
    unit: str
    step: float
    decimals: int
    noun: str
    lost: str
    gained: str

    def told(self, difference: float) -> str:
        return f"{difference / self.step:.{self.decimals}f}"


ANSWERS = Scale(Better.HIGHER, 1.0, "points", 0.01, 2, "answer", "lost", "gained")
SCORES = Scale(Better.HIGHER, 1.0, "points", 0.01, 2, "document", "worse", "better")
LOSSES = Scale(Better.LOWER, None, "nats", 1.0, 4, "document", "worse", "better")


@dataclass(frozen=True)
class Pairing:
    """The same documents, scored for both; in the order of their hashes, so no other order has an influence.

    clusters  what each document was made from; a document without template names itself
    """

    scale: Scale
    documents: tuple[str, ...]
    candidate: tuple[float, ...]
    reference: tuple[float, ...]
    clusters: tuple[str, ...]

    @property
    def differences(self) -> tuple[float, ...]:
        """Of each document: candidate less reference, turned so that more is better."""
        sign = 1.0 if self.scale.better is Better.HIGHER else -1.0
        return tuple(sign * (ours - theirs) for ours, theirs in zip(self.candidate, self.reference, strict=True))


@dataclass(frozen=True)
class Comparison:
    """A candidate against its reference.

    difference      mean of candidate less reference, turned so that more is better, in units of the score
    low, high       each end at confidence 1 - alpha, one-sided; infinite for losses of a single cluster
    lost, gained    number of documents the candidate is worse and better at: of 0/1 scores, the discordant ones
    candidate, reference  mean scores
    worst           the documents that lost most, and how much: largest loss first, equal ones in order of hash
    """

    outcome: Outcome
    difference: float
    low: float
    high: float
    documents: int
    clusters: int
    lost: int
    gained: int
    candidate: float
    reference: float
    margin: float
    alpha: float
    worst: tuple[tuple[str, float], ...]
    scale: Scale

    @property
    def reason(self) -> str:
        """One sentence: difference, its interval, on what, what changed, what is allowed."""
        groups = "" if self.clusters == self.documents else f" in {counted(self.clusters, 'group')}"
        worse = f"{counted(self.lost, self.scale.noun)} {self.scale.lost}"
        return (
            f"{self._change} on {counted(self.documents, 'document')}{groups}: "
            f"{worse}, {self.gained:,} {self.scale.gained}; allowed is {self.scale.told(self.margin)}"
        )

    @property
    def counts(self) -> dict[str, float]:
        """For run.json: how many documents went which way, and the interval of the difference, in `step` of the scale.

        Of right or wrong answers also how many both had right; of scores and losses that is no question.
        """
        step = self.scale.step
        found: dict[str, float] = {
            "documents": self.documents,
            "groups": self.clusters,
            "only_reference": self.lost,
            "only_candidate": self.gained,
            "difference": self.difference / step,
            "margin": self.margin / step,
        }
        if math.isfinite(self.low) and math.isfinite(self.high):
            found |= {"low": self.low / step, "high": self.high / step}
        if self.scale is ANSWERS:
            found["both"] = round(self.candidate * self.documents) - self.gained
        return found

    @property
    def _change(self) -> str:
        told, unit = self.scale.told, self.scale.unit
        low, high = sorted((abs(self.low), abs(self.high)))
        ends = f"{told(low)} to {told(high)}"
        if self.low < 0 < self.high:
            ends = f"{told(self.high)} gained to {told(-self.low)} lost"
        verb = "lost" if self.difference < 0 else "gained" if self.difference > 0 else "changed by"
        return f"{verb} {told(abs(self.difference))} {unit} ({ends})"


def pair_scores(
    candidate: Mapping[str, float], reference: Mapping[str, float], clusters: Mapping[str, str] | None = None
) -> Pairing:
    """Scores in [0, 1] by hash of document: right or wrong as 1 and 0, or graded as ROUGE is; more is better.

    Raises UsageError for no document, one scored on one side only, or a cluster of a document that was not scored;
    EngineError for a score that is not a number from 0 to 1.
    """
    _refuse_strangers(candidate, reference, clusters or {})
    for whose, scores in (("candidate", candidate), ("reference", reference)):
        _refuse_scores(whose, "numbers from 0 to 1", {name: s for name, s in scores.items() if not 0 <= s <= 1})
    right_or_wrong = {*candidate.values(), *reference.values()} <= {0, 1}
    return _paired(ANSWERS if right_or_wrong else SCORES, candidate, reference, clusters or {})


def pair_losses(
    candidate: Mapping[str, float], reference: Mapping[str, float], clusters: Mapping[str, str] | None = None
) -> Pairing:
    """Negative log-likelihood a token, in nats, by hash of document; less is better.

    The mean over documents is compared: exp of it is a perplexity in which every document counts the same, however
    long. Raises as `pair_scores` does, EngineError for a loss that is not finite.
    """
    _refuse_strangers(candidate, reference, clusters or {})
    for whose, losses in (("candidate", candidate), ("reference", reference)):
        _refuse_scores(whose, "finite numbers", {name: s for name, s in losses.items() if not math.isfinite(s)})
    return _paired(LOSSES, candidate, reference, clusters or {})


def compare(pairing: Pairing, margin: float = MARGIN, alpha: float = ALPHA) -> Comparison:
    """The whole interval above -margin: pass; below it: regression; across it: inconclusive.

    A candidate that truly loses the margin passes with a chance of alpha. The margin is in units of the score: 0.01
    is one point, or, of losses, 0.01 nats: one percent of perplexity. Raises UsageError for a margin that is not
    positive, or an alpha outside (0, 0.25].
    """
    refuse_limits(margin, alpha)
    import numpy as np

    numbers = {name: number for number, name in enumerate(dict.fromkeys(pairing.clusters))}
    members = [numbers[name] for name in pairing.clusters]
    differences = pairing.differences
    lost = {name: -d for name, d in zip(pairing.documents, differences, strict=True) if d < 0}
    largest = pairing.scale.largest or max(abs(d) for d in differences)
    sums = np.bincount(members, differences).astype(float)
    sizes = np.bincount(members).astype(float)
    difference, low, high = (float(number) for number in interval(sums, sizes, alpha, largest=largest))
    if pairing.scale.largest is not None:
        low, high = max(low, -pairing.scale.largest), min(high, pairing.scale.largest)
    return Comparison(
        outcome=_outcome(low, high, margin),
        difference=difference,
        low=low,
        high=high,
        documents=len(differences),
        clusters=len(numbers),
        lost=len(lost),
        gained=sum(d > 0 for d in differences),
        candidate=math.fsum(pairing.candidate) / len(differences),
        reference=math.fsum(pairing.reference) / len(differences),
        margin=margin,
        alpha=alpha,
        worst=tuple(sorted(lost.items(), key=lambda document: (-document[1], document[0]))[:WORST]),
        scale=pairing.scale,
    )


def interval(
    sums: Numbers, sizes: Numbers, alpha: float = ALPHA, *, largest: float = 1.0
) -> tuple[Numbers, Numbers, Numbers]:
    """Mean difference and its two ends, each at confidence 1 - alpha, one-sided.

    sums     differences added up within each cluster; clusters are the last axis, those before are comparisons
    sizes    documents of each cluster
    largest  how far two scores of a document can differ

    With n documents and the mean difference D, the residual of a cluster is e = (sum - size * D) / sqrt(1 - size / n):
    the cluster-robust variance without bias if documents are independent (CR2: Bell and McCaffrey, Survey Methodology
    28, 2002). Which ends follow from the residuals, `ends` tells.

    Without differences there is no variance, yet the next document may differ. So two more documents are counted in it,
    one lost and one gained as far as can be (after Bonett and Price, Journal of Educational and Behavioral Statistics
    37, 2012), with the design effect of clusters that differ as one. n equal answers give +-4.1/n, where the rule of
    three gives 3/n; in templates of 10 they give +-13/n, or all of a few templates would pass too easily.

    One cluster says nothing of how clusters differ: its interval is infinite.
    """
    import numpy as np

    documents = float(sizes.sum())
    difference = sums.sum(axis=-1) / documents
    if sizes.size < 2:
        return difference, difference - np.inf, difference + np.inf
    residuals = (sums - sizes * difference[..., None]) / np.sqrt(1 - sizes / documents)
    squares = residuals**2
    second, third, fourth = (moment.sum(axis=-1) for moment in (squares, squares * residuals, squares * squares))
    two_more = largest**2 * mean_size(sizes)
    return difference, *ends(difference, (second, third, fourth), two_more, documents, sizes.size, alpha)


def ends(
    difference: Numbers,
    moments: tuple[Numbers, Numbers, Numbers],
    two_more: float,
    documents: float,
    clusters: float,
    alpha: float,
) -> tuple[Numbers, Numbers]:
    """The interval from the sums of e^2, e^3 and e^4 over clusters, and e^2 of each of the two more documents.

    t has (sum e^2)^2 / sum e^4 degrees of freedom, at most clusters - 1: it counts the clusters that the variance rests
    on, k when only k of many differ, a third of them when sums are normal. That is half of what Satterthwaite's
    rule gives for rare differences; with the whole, levels are too high where few templates change.

    Where more is lost than gained the mean is skewed; Hall's correction moves both ends by (1 + 2 z^2) / 6 *
    sum e^3 / sum e^2 / n (Annals of Statistics 11, 1983). Without it a candidate that only loses passes too often.
    """
    import numpy as np
    from scipy.special import ndtri, stdtrit

    if not two_more:
        return difference, difference
    second, fourth = moments[0] + 2 * two_more, moments[2] + 2 * two_more**2
    freedom = np.minimum(second**2 / fourth, clusters - 1)
    reach = stdtrit(freedom, 1 - alpha) * np.sqrt(second) / documents
    shift = (1 + 2 * ndtri(1 - alpha) ** 2) / 6 * moments[1] / second / documents
    return difference - reach + shift, difference + reach + shift


def mean_size(sizes: Numbers) -> float:
    """Documents in the cluster of a document, on average: large clusters count for each document in them."""
    return float((sizes**2).sum() / sizes.sum())


def refuse_limits(margin: float, alpha: float) -> None:
    """Beyond alpha 0.25 the correction for skewness could move an end past the difference itself."""
    if not (0 < margin < math.inf):
        raise UsageError(f"a margin is how much a candidate may lose, so more than 0; {margin:g} is not")
    if not 0 < alpha <= 0.25:
        raise UsageError(f"alpha is the chance to pass what loses the margin, above 0 and up to 0.25; {alpha:g} is not")


def _outcome(low: float, high: float, margin: float) -> Outcome:
    if low > -margin:
        return Outcome.PASS
    return Outcome.REGRESSION if high < -margin else Outcome.INCONCLUSIVE


def _paired(
    scale: Scale, candidate: Mapping[str, float], reference: Mapping[str, float], clusters: Mapping[str, str]
) -> Pairing:
    names = tuple(sorted(candidate))
    return Pairing(
        scale,
        names,
        tuple(float(candidate[name]) for name in names),
        tuple(float(reference[name]) for name in names),
        tuple(clusters.get(name, name) for name in names),
    )


def _refuse_strangers(
    candidate: Mapping[str, float], reference: Mapping[str, float], clusters: Mapping[str, str]
) -> None:
    if not candidate and not reference:
        raise UsageError("nothing to compare: no document was scored")
    alone = [
        f"{counted(len(names), 'document')} scored for the {whose} only ({_some(names)})"
        for whose, names in (
            ("candidate", candidate.keys() - reference.keys()),
            ("reference", reference.keys() - candidate.keys()),
        )
        if names
    ]
    if alone:
        raise UsageError(f"{', '.join(alone)}: candidate and reference are compared on the same documents")
    if strangers := clusters.keys() - candidate.keys():
        raise UsageError(
            f"clusters name {counted(len(strangers), 'document')} without a score ({_some(strangers)}): "
            "hashes of clusters and of scores must be made alike"
        )


def _refuse_scores(whose: str, wanted: str, wrong: Mapping[str, float]) -> None:
    if wrong:
        shown = _some(f"{name}: {score:g}" for name, score in wrong.items())
        raise EngineError(f"{counted(len(wrong), 'score')} of the {whose} must be {wanted} ({shown})")


def _some(names: Iterable[str]) -> str:
    first, *more = sorted(names)
    return ", ".join([first, *more[:2], *(["..."] if more[2:] else [])])
