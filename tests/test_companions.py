"""Perplexity, divergence and agreement on the fixed text: what they are, what bounds them, and what is no comparison."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import scipy.special  # noqa: F401  pytester forgets what it imports first, and numpy refuses to be loaded twice
from hypothesis import given
from hypothesis import strategies as st

from pytest_llamaperf.accuracy.companions import (
    TOP,
    Companions,
    Look,
    Loss,
    compare,
    divergence,
    looked_at,
    mean_of_clusters,
    paragraphs,
)
from pytest_llamaperf.cases import Case, Task, Workload
from pytest_llamaperf.catalog import case_of_key, model_named, models, recipe_named, recipes
from pytest_llamaperf.catalog.companions import CompanionLimits, companion_limits
from pytest_llamaperf.checkpoints.calibration import Calibration
from pytest_llamaperf.engines import Distributions, Run, Scored
from pytest_llamaperf.errors import Unsupported, UsageError
from pytest_llamaperf.hosting.failures import EngineFailure
from pytest_llamaperf.measurements import Source

BF16 = dataclasses.replace(case_of_key("cpu", "torch/smollm2-135m/bf16/tp1/min-latency-16-8"), work=Task("answers"))
FP8 = dataclasses.replace(BF16, recipe=recipe_named("modelopt-fp8"))

TABLE = Path(__file__).parents[1] / "benchmarks" / "accuracy" / "README.md"

Place = tuple[int, Mapping[int, float]]  # the token that is there, and what was expected


def look(*texts: Sequence[Place], case: Case = FP8, first: int = 0) -> Look:
    """Of paragraphs, each given by its places after the first token. Probabilities, not their logarithms."""
    return Look(
        case,
        tuple((first, *(token for token, _ in text)) for text in texts),
        tuple(
            Distributions(
                tuple(math.log(expected[token]) for token, expected in text),
                tuple({token: math.log(p) for token, p in _sorted(expected)[:2]} for _, expected in text),
            )
            for text in texts
        ),
    )


def _sorted(expected: Mapping[int, float]) -> list[tuple[int, float]]:
    return sorted(expected.items(), key=lambda item: -item[1])


EVEN = {1: 0.5, 2: 0.25, 3: 0.25}
OTHER = {1: 0.25, 2: 0.5, 3: 0.25}
REFERENCE = look([(1, EVEN), (2, EVEN)], [(1, EVEN)], case=BF16)
CANDIDATE = look([(1, OTHER), (2, EVEN)], [(1, EVEN)])

# --- perplexity, loss, agreement ----------------------------------------------------------------------------------------


def test_perplexity_is_that_of_all_tokens_after_the_first_of_their_paragraphs() -> None:
    found = compare(CANDIDATE, REFERENCE)

    assert found.tokens == 3
    assert found.paragraphs == 2
    assert found.perplexities == pytest.approx(((4 * 4 * 2) ** (1 / 3), (2 * 4 * 2) ** (1 / 3)))
    assert found.loss.mean == pytest.approx(math.log(2) / 3)
    assert math.log(found.perplexities[0] / found.perplexities[1]) == pytest.approx(found.loss.mean)


def test_agreement_is_the_share_of_places_with_the_same_most_likely_token() -> None:
    assert compare(CANDIDATE, REFERENCE).agreement == pytest.approx(2 / 3)


def test_of_equally_likely_tokens_the_first_of_the_vocabulary_counts_on_both_sides() -> None:
    """Engines tell equally likely tokens in any order, and scores of BF16 are often equal."""
    tied, turned = ({1: 0.5, 2: 0.5}, {2: 0.5, 1: 0.5})

    assert compare(look([(1, turned)] * 2, [(1, turned)]), look([(1, tied)] * 2, [(1, tied)])).agreement == 1.0


def test_divergence_is_the_mean_over_all_tokens() -> None:
    expected = 0.5 * math.log(0.5 / 0.25) + 0.25 * math.log(0.25 / 0.5)

    assert compare(CANDIDATE, REFERENCE).divergence == pytest.approx(expected / 3)


def test_the_token_that_is_there_is_known_also_where_it_is_not_among_the_likeliest() -> None:
    """Two of three are told; the third is there, so all is known, and nothing of the divergence is lost."""
    ours, theirs = {1: 0.5, 2: 0.3, 3: 0.2}, {1: 0.5, 2: 0.4, 3: 0.1}
    text = [(3, ours)], [(3, ours)]
    other = [(3, theirs)], [(3, theirs)]
    expected = 0.4 * math.log(0.4 / 0.3) + 0.1 * math.log(0.1 / 0.2)

    assert compare(look(*text), look(*other)).divergence == pytest.approx(expected)


def test_a_candidate_that_is_the_reference_differs_in_nothing() -> None:
    found = compare(REFERENCE, REFERENCE)

    assert (found.loss, found.divergence, found.agreement) == (Loss(0.0, 0.0, 0.0), 0.0, 1.0)
    assert found.problems(CompanionLimits(divergence=0.0, agreement=1.0, loss=0.0)) == ()


def test_paragraphs_of_one_token_each_are_a_plain_t_interval() -> None:
    values = [0.1, -0.2, 0.4, 0.3]
    reach = 2.3533634348 * statistics.stdev(values) / 2  # t of 0.95 and 3 degrees of freedom

    found = mean_of_clusters([[value] for value in values])

    assert (found.mean, found.high - found.mean) == (pytest.approx(0.15), pytest.approx(reach))


def test_tokens_of_a_paragraph_that_move_together_are_no_more_certain_than_one() -> None:
    one, ten = ([[value] * times for value in (0.1, -0.2, 0.4, 0.3)] for times in (1, 10))

    assert mean_of_clusters(ten).high == pytest.approx(mean_of_clusters(one).high)


# --- divergence as a bound ----------------------------------------------------------------------------------------------


@st.composite
def distributions(draw: st.DrawFn) -> tuple[dict[int, float], dict[int, float]]:
    """Log-probabilities of all tokens of a small vocabulary, twice, from even to nearly certain."""
    size = draw(st.integers(2, 12))
    pairs = []
    for _ in range(2):
        scores = draw(st.lists(st.floats(-30, 30), min_size=size, max_size=size))
        total = math.log(math.fsum(math.exp(score - max(scores)) for score in scores)) + max(scores)
        pairs.append({token: score - total for token, score in enumerate(scores)})
    return pairs[0], pairs[1]


def exact(reference: Mapping[int, float], candidate: Mapping[int, float]) -> float:
    return math.fsum(math.exp(p) * (p - candidate[token]) for token, p in reference.items())


def best(logprobs: Mapping[int, float], top: int) -> dict[int, float]:
    return dict(sorted(logprobs.items(), key=lambda item: -item[1])[:top])


@given(distributions(), st.integers(0, 12))
def test_the_bound_is_never_negative_and_never_above_the_divergence_of_the_whole(
    pair: tuple[dict[int, float], dict[int, float]], top: int
) -> None:
    found = divergence(best(pair[0], top), best(pair[1], top))

    assert 0.0 <= found <= exact(*pair) + 1e-9


@given(distributions(), st.integers(1, 12))
def test_equal_distributions_do_not_diverge(pair: tuple[dict[int, float], dict[int, float]], top: int) -> None:
    assert divergence(best(pair[0], top), best(pair[0], top)) == 0.0


@given(distributions())
def test_with_all_tokens_told_the_bound_is_the_divergence(pair: tuple[dict[int, float], dict[int, float]]) -> None:
    assert divergence(*pair) == pytest.approx(max(0.0, exact(*pair)), abs=1e-9)


def test_lists_without_a_common_token_say_nothing() -> None:
    assert divergence({1: math.log(0.9)}, {2: math.log(0.9)}) == 0.0


def test_a_rest_that_rounding_took_away_is_not_made_infinite() -> None:
    assert divergence({1: math.log(0.5)}, {1: 0.0}) == pytest.approx(0.5 * math.log(0.5) + 0.5 * math.log(0.5 / 1e-6))


# --- what is no comparison ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("candidate", "reference", "message"),
    [
        (look([(1, EVEN)], [(1, EVEN)]), REFERENCE, "looked at different texts"),
        (look([(1, EVEN), (2, EVEN)], [(2, EVEN)]), REFERENCE, "looked at different texts"),
        (look([(1, EVEN), (2, EVEN)], [(1, EVEN)], first=9), REFERENCE, "looked at different texts"),
        (Look(FP8, (), ()), Look(BF16, (), ()), "nothing to compare"),
        (look([(1, EVEN)]), look([(1, EVEN)]), "fewer than two paragraphs"),
        (look([], []), look([], []), "nothing to compare"),
        (
            dataclasses.replace(REFERENCE, case=FP8, distributions=CANDIDATE.distributions[::-1]),
            REFERENCE,
            "paragraph 0: 1 log-probabilities and 1 distributions for 3 tokens",
        ),
    ],
)
def test_looks_that_cannot_be_compared_are_refused(candidate: Look, reference: Look, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        compare(candidate, reference)


# --- judging ------------------------------------------------------------------------------------------------------------


def test_what_is_at_the_limit_is_allowed_and_what_is_beyond_is_told() -> None:
    found = compare(CANDIDATE, REFERENCE)
    at = CompanionLimits(found.divergence, found.agreement, found.loss.mean)

    assert found.problems(at) == ()
    assert found.problems(CompanionLimits(found.divergence - 1e-9, 1.0, 0.2)) == (
        "the mean divergence of next-token distributions is 0.0578 nats, allowed are 0.0577623",
        "the most likely token is the same in 66.67 % of places, needed are 100.00 %",
        "a token costs +0.2310 nats, allowed are +0.2",
    )


def test_a_candidate_that_is_more_certain_than_its_reference_is_no_problem() -> None:
    found = compare(dataclasses.replace(REFERENCE, case=FP8), dataclasses.replace(CANDIDATE, case=BF16))

    assert found.loss.mean < 0
    assert found.problems(CompanionLimits(1.0, 0.0, 0.0)) == ()


def test_companions_are_told_in_one_line() -> None:
    assert str(compare(CANDIDATE, REFERENCE)) == (
        "perplexity 3.175 beside 2.52, +0.2310 nats a token (-0.7415 to +1.2036), divergence 0.0578 nats, most likely "
        "token the same in 66.67 % of 3 places"
    )


@pytest.mark.parametrize("model", sorted(models()))
@pytest.mark.parametrize("recipe", sorted(recipes()))
def test_every_recipe_of_every_model_has_limits(model: str, recipe: str) -> None:
    limits = companion_limits(model_named(model), recipe_named(recipe))

    assert 0 < limits.divergence < 1
    assert 0.5 < limits.agreement < 1
    assert 0 < limits.loss < 1


def measured() -> list[tuple[str, str, Companions, str]]:
    """(recipe, what was done to it, figures, whether it is healthy) of the table that limits were chosen by."""
    rows = []
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 7 or cells[-1] not in ("healthy", "harmless", "broken"):
            continue
        mean, low, _, high = cells[3].replace("(", "").replace(")", "").split()
        figures = Companions(
            FP8, BF16, tokens=2965, paragraphs=36, perplexities=(float(cells[2]), 15.9),
            loss=Loss(float(mean), float(low), float(high)), divergence=float(cells[4]),
            agreement=float(cells[5].removesuffix("%")) / 100,
        )  # fmt: skip
        rows.append((cells[0], cells[1], figures, cells[-1]))
    return rows


@pytest.mark.parametrize(
    ("recipe", "what", "figures", "kind"), measured(), ids=[f"{recipe} {what}" for recipe, what, _, _ in measured()]
)
def test_limits_tell_what_was_measured_healthy_from_what_was_broken(
    recipe: str, what: str, figures: Companions, kind: str
) -> None:
    limits = companion_limits(model_named("smollm2-135m"), recipe_named(recipe))

    assert bool(figures.problems(limits)) == (kind == "broken")


def test_the_table_that_limits_were_chosen_by_has_both_kinds() -> None:
    kinds = [kind for _, _, _, kind in measured()]

    assert min(kinds.count("healthy"), kinds.count("broken")) >= 9


def test_a_variant_has_the_limits_of_its_model() -> None:
    recipe = recipe_named("modelopt-fp8")

    assert companion_limits(model_named("smollm2-135m@random@layers=2"), recipe) == companion_limits(
        model_named("smollm2-135m"), recipe
    )


# --- looking ------------------------------------------------------------------------------------------------------------


class Reader:
    """An engine whose tokens are bytes, and which holds each token of the text for as likely as it is told."""

    source = Source.MEASURED

    def __init__(self, logprob: float = -0.5, likeliest: Mapping[int, float] | None = None, missing: int = 0) -> None:
        self.logprob, self.likeliest, self.missing = logprob, likeliest or {0: -1.0}, missing
        self.top = 0

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(text.encode()) for text in texts]

    def decode(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        raise NotImplementedError

    def generate(
        self, prompts: Sequence[Sequence[int]], tokens: int, *, until=None, concurrency: int | None = None
    ) -> list[list[int]]:
        raise NotImplementedError

    def score(
        self, sequences: Sequence[Sequence[int]], *, tails: Sequence[int] | None = None, noise: float = 0.0
    ) -> list[Scored]:
        raise NotImplementedError

    def distributions(self, sequences: Sequence[Sequence[int]], top: int) -> list[Distributions]:
        self.top = top
        return [
            Distributions((self.logprob,) * (len(s) - 1 - self.missing), (self.likeliest,) * (len(s) - 1))
            for s in sequences
        ]

    def run(self, workload: Workload) -> Run:
        raise NotImplementedError

    def close(self) -> None: ...


def test_an_engine_is_asked_for_the_fixed_text() -> None:
    engine = Reader()

    found = looked_at(BF16, engine)

    assert engine.top == TOP
    assert [bytes(sequence).decode() for sequence in found.sequences] == paragraphs()
    assert found.perplexity == pytest.approx(math.exp(0.5))
    assert compare(found, found).agreement == 1.0


@pytest.mark.parametrize(
    ("engine", "problem"),
    [
        (Reader(logprob=math.nan), "paragraph 0: a log-probability at place 1 is none"),
        (Reader(logprob=-math.inf), "paragraph 0: a log-probability at place 1 is none"),
        (Reader(likeliest={5: math.nan}), "paragraph 0: a log-probability at place 1 is none"),
        (Reader(logprob=1e4), r"paragraph 0: a log-probability at place 1 is \+1e\+04"),
        (Reader(likeliest={0: -0.1, 1: -0.1}), r"paragraph 0: probabilities at place 1 sum to 2\."),
        (Reader(missing=1), r"paragraph 0: \d+ log-probabilities and \d+ distributions for \d+ tokens"),
    ],
)
def test_distributions_that_cannot_be_are_a_bad_report(engine: Reader, problem: str) -> None:
    with pytest.raises(EngineFailure, match=problem) as failed:
        looked_at(BF16, engine)

    assert failed.value.kind == "bad-report"


def test_an_engine_without_answers_and_a_network_without_a_tokenizer_are_not_asked() -> None:
    class Mute:
        source = Source.MEASURED

        def run(self, workload: Workload) -> Run:
            raise NotImplementedError

        def close(self) -> None: ...

    with pytest.raises(Unsupported, match="torch runs workloads and cannot be asked"):
        looked_at(BF16, Mute())
    with pytest.raises(Unsupported, match="random weights has no tokenizer"):
        looked_at(dataclasses.replace(BF16, model=model_named("smollm2-135m@random@layers=2")), Reader())


# --- the text -----------------------------------------------------------------------------------------------------------


def test_the_text_is_many_paragraphs_that_fit_into_the_smallest_slot() -> None:
    """Limits give a slot 512 tokens at least, and a token is a byte at worst. More paragraphs make a narrower interval."""
    assert len(paragraphs()) >= 30
    assert all(paragraph == paragraph.strip() and paragraph.isascii() for paragraph in paragraphs())
    assert all(150 <= len(paragraph) <= 511 for paragraph in paragraphs())


def test_nothing_of_the_text_is_in_the_calibration_text() -> None:
    """What scales were calibrated on would be easier than what they were not."""
    calibration = Calibration().text.read_text(encoding="utf-8")
    sentences = [sentence for paragraph in paragraphs() for sentence in paragraph.split(". ")]

    assert not [sentence for sentence in sentences if len(sentence) > 30 and sentence in calibration]
