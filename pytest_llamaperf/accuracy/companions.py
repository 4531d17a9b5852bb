"""What moves before task scores do: what a recipe expects in a fixed text, compared with what BF16 expects there.

Every token of a text is a question, and how likely an answer was says more than whether it was right: a broken
quantization that costs a task a few points, too few to be sure of, shows here in some thousand tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from pytest_llamaperf.cases import Case
from pytest_llamaperf.catalog.companions import CompanionLimits
from pytest_llamaperf.engines import Distributions, Engine, LookingEngine
from pytest_llamaperf.errors import Unsupported, UsageError
from pytest_llamaperf.hosting.failures import EngineFailure, FailureKind
from pytest_llamaperf.hosting.phases import Phase
from pytest_llamaperf.wording import amount, counted

# The name of the task in a case.
TEXT = "text"

PARAGRAPHS = Path(__file__).parent / "text.txt"
TOP = 20  # tokens of each distribution that are asked for

# Of a probability: what engines that add up in FP32 do not know.
ROUNDING = 1e-6
# By how much a log-probability may be above 0, and the sum of probabilities above 1: each was rounded.
EXCESS = 1e-2


@dataclass(frozen=True)
class Look:
    """What an engine expects in the fixed text. `sequences` are its paragraphs as the model reads them."""

    case: Case
    sequences: tuple[tuple[int, ...], ...]
    distributions: tuple[Distributions, ...]

    @property
    def tokens(self) -> int:
        """Those that were expected or not: all but the first of each paragraph."""
        return sum(len(found.logprobs) for found in self.distributions)

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-likelihood of a token."""
        return math.exp(-math.fsum(chain.from_iterable(found.logprobs for found in self.distributions)) / self.tokens)


@dataclass(frozen=True)
class Loss:
    """Nats per token that a candidate needs more than its reference, and its interval: each end at 95 % confidence."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Companions:
    """A candidate beside its reference.

    perplexities  of the candidate and of the reference
    loss          by which log-likelihoods differ
    divergence    mean Kullback-Leibler divergence of the candidate from the reference, nats per token; at least that,
                  see `divergence`
    agreement     share of tokens before which both hold the same token for the most likely one
    """

    candidate: Case
    reference: Case
    tokens: int
    paragraphs: int
    perplexities: tuple[float, float]
    loss: Loss
    divergence: float
    agreement: float

    def problems(self, limits: CompanionLimits) -> tuple[str, ...]:
        """What is further from the reference than a healthy recipe is; nothing where all is well."""
        told = []
        if self.divergence > limits.divergence:
            told.append(
                f"the mean divergence of next-token distributions is {self.divergence:.4f} nats, allowed are "
                f"{limits.divergence:g}"
            )
        if self.agreement < limits.agreement:
            told.append(
                f"the most likely token is the same in {amount(self.agreement, 'fraction')} of places, needed are "
                f"{amount(limits.agreement, 'fraction')}"
            )
        if self.loss.mean > limits.loss:
            told.append(f"a token costs {self.loss.mean:+.4f} nats, allowed are {limits.loss:+g}")
        return tuple(told)

    def __str__(self) -> str:
        ours, theirs = (amount(value, "1") for value in self.perplexities)
        return (
            f"perplexity {ours} beside {theirs}, {self.loss.mean:+.4f} nats a token ({self.loss.low:+.4f} to "
            f"{self.loss.high:+.4f}), divergence {self.divergence:.4f} nats, most likely token the same in "
            f"{amount(self.agreement, 'fraction')} of {counted(self.tokens, 'place')}"
        )


def paragraphs() -> list[str]:
    return PARAGRAPHS.read_text(encoding="utf-8").strip().split("\n\n")


def looked_at(case: Case, engine: Engine) -> Look:
    """Raises Unsupported for an engine that cannot be asked, EngineFailure for distributions that cannot be."""
    if not isinstance(engine, LookingEngine):
        raise Unsupported(f"{case}: {case.engine} runs workloads and cannot be asked for answers")
    if case.model.random:
        raise Unsupported(f"{case}: a network of random weights has no tokenizer, and expects nothing of a text")
    sequences = engine.encode(paragraphs())
    found = engine.distributions(sequences, TOP)
    for number, (sequence, one) in enumerate(zip(sequences, found, strict=True)):
        problem = _wrong(sequence, one)
        if problem:
            raise EngineFailure(FailureKind.BAD_REPORT, Phase.RUN, f"{case}: paragraph {number}: {problem}")
    return Look(case, tuple(map(tuple, sequences)), tuple(found))


def compare(candidate: Look, reference: Look) -> Companions:
    """Raises UsageError for looks at different texts, and for those in which there is nothing to compare."""
    _refuse_different(candidate, reference)
    pairs = list(zip(candidate.sequences, candidate.distributions, reference.distributions, strict=True))
    losses = [
        [theirs - ours for ours, theirs in zip(one.logprobs, other.logprobs, strict=True)] for _, one, other in pairs
    ]
    places = [
        (_known(other, place, token), _known(one, place, token), other.likeliest[place], one.likeliest[place])
        for sequence, one, other in pairs
        for place, token in enumerate(sequence[1:])
    ]
    return Companions(
        candidate.case,
        reference.case,
        tokens=len(places),
        paragraphs=len(pairs),
        perplexities=(candidate.perplexity, reference.perplexity),
        loss=mean_of_clusters(losses),
        divergence=math.fsum(divergence(theirs, ours) for theirs, ours, _, _ in places) / len(places),
        agreement=sum(_first(theirs) == _first(ours) for _, _, theirs, ours in places) / len(places),
    )


def divergence(reference: Mapping[int, float], candidate: Mapping[int, float]) -> float:
    """KL(reference || candidate) in nats, at least: of distributions of which some log-probabilities are known.

    All tokens but those known of both are one event, so what is compared are coarser distributions, and by the
    data-processing inequality the divergence of those is at most that of the whole ones (Cover & Thomas, Elements of
    Information Theory, 2nd edition, theorem 2.7.1 and section 2.8).
    """
    both = sorted(reference.keys() & candidate.keys())
    parts = [math.exp(reference[token]) * (reference[token] - candidate[token]) for token in both]
    rest, its_rest = (_rest([known[token] for token in both]) for known in (reference, candidate))
    if rest > 0:
        # Less than the rounding it is never said to be, which would make much of nothing.
        parts.append(rest * math.log(rest / max(its_rest, ROUNDING)))
    return max(0.0, math.fsum(parts))


def mean_of_clusters(clusters: Sequence[Sequence[float]]) -> Loss:
    """Mean of all values, and its interval by Student's t where only whole clusters are independent.

    What is left of each cluster's sum without the mean is squared, times n / (n - 1) for n clusters (Liang & Zeger,
    Biometrika 73, 1986, for a mean), with n - 1 degrees of freedom.
    """
    # scipy.special is imported late: only a run that compared pays the tenth of a second.
    from scipy.special import stdtrit

    values, count = sum(map(len, clusters)), len(clusters)
    mean = math.fsum(chain.from_iterable(clusters)) / values
    squares = math.fsum(math.fsum(value - mean for value in cluster) ** 2 for cluster in clusters)
    reach = float(stdtrit(count - 1, 0.95)) * math.sqrt(squares * count / (count - 1)) / values
    return Loss(mean, mean - reach, mean + reach)


def _known(found: Distributions, place: int, token: int) -> Mapping[int, float]:
    """What is told of one distribution: its most likely tokens, and the one that is there."""
    return {**found.likeliest[place], token: found.logprobs[place]}


def _first(likeliest: Mapping[int, float]) -> int:
    """The most likely token; of several, the first of the vocabulary: scores of BF16 are often equal."""
    return min(likeliest, key=lambda token: (-likeliest[token], token))


def _rest(logprobs: Sequence[float]) -> float:
    return max(0.0, 1.0 - math.fsum(map(math.exp, logprobs)))


def _refuse_different(candidate: Look, reference: Look) -> None:
    names = f"{candidate.case} and {reference.case}"
    if candidate.sequences != reference.sequences:
        raise UsageError(f"{names} looked at different texts, or read them as different tokens: nothing to compare")
    if len(candidate.sequences) < 2 or not candidate.tokens:
        raise UsageError(f"{names}: fewer than two paragraphs of two tokens are nothing to compare")
    for look in (candidate, reference):
        for number, (sequence, found) in enumerate(zip(look.sequences, look.distributions, strict=True)):
            if problem := _wrong(sequence, found):
                raise UsageError(f"{look.case}: paragraph {number}: {problem}")


def _wrong(sequence: Sequence[int], found: Distributions) -> str:
    """Why these cannot be distributions in the place of a sequence's tokens; empty if they can."""
    if not len(found.logprobs) == len(found.likeliest) == len(sequence) - 1:
        return (
            f"{len(found.logprobs)} log-probabilities and {len(found.likeliest)} distributions for "
            f"{counted(len(sequence), 'token')}"
        )
    for place, (logprob, likeliest) in enumerate(zip(found.logprobs, found.likeliest, strict=True)):
        known = {**likeliest, sequence[place + 1]: logprob}
        if not likeliest or not all(map(math.isfinite, known.values())):
            return f"a log-probability at place {place + 1} is none"
        if (most := max(known.values())) > EXCESS:
            return f"a log-probability at place {place + 1} is {most:+.3g}"
        if (total := math.fsum(map(math.exp, known.values()))) > 1 + EXCESS:
            return f"probabilities at place {place + 1} sum to {total:.3f}"
    return ""
