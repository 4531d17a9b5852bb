"""Paired comparison of a candidate with its reference, against truth that is known: by hand, exactly, and simulated."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pytest_llamaperf.accuracy.paired import Comparison, compare, interval, pair_losses, pair_scores
from pytest_llamaperf.accuracy.power import Plan, planned, refuse_underpowered
from pytest_llamaperf.errors import EngineError, UsageError
from pytest_llamaperf.verdicts import Outcome

Numbers = NDArray[np.float64]
WORST_FIRST = [Outcome.REGRESSION, Outcome.INCONCLUSIVE, Outcome.PASS]
TEMPLATES = np.random.default_rng(7).integers(5, 16, 100).astype(float)  # documents of each template
ALONE = np.ones(1500)
TIMES = 2000
ALPHA = 0.05
ERROR = 3 * math.sqrt(ALPHA * (1 - ALPHA) / TIMES)  # of a share of 0.05 among 2,000: 0.015


def answers(lost: int, gained: int, same: int) -> tuple[dict[str, float], dict[str, float]]:
    """Candidate and reference; d0000 and on are lost, then come those gained."""
    names = [f"d{number:04}" for number in range(lost + gained + same)]
    candidate = {name: float(number >= lost) for number, name in enumerate(names)}
    reference = {name: float(not lost <= number < lost + gained) for number, name in enumerate(names)}
    return candidate, reference


def compared(lost: int, gained: int, same: int, margin: float = 0.01, alpha: float = ALPHA) -> Comparison:
    return compare(pair_scores(*answers(lost, gained, same)), margin, alpha)


def drawn(sizes: Numbers, lost: float, gained: float, likeness: float, seed: int, times: int = TIMES) -> Numbers:
    """Sums of differences by cluster, of many comparisons.

    Each cluster has its own chances to lose and gain, Dirichlet-distributed about the given ones: `likeness` is the
    correlation of two documents of a cluster.
    """
    rng, shape = np.random.default_rng(seed), (times, sizes.size)
    counts = sizes.astype(int)
    if not likeness:
        losses = rng.binomial(counts, lost, shape)
        return (rng.binomial(counts - losses, gained / (1 - lost)) - losses).astype(float)
    sharpness = 1 / likeness - 1
    down, up, rest = (rng.gamma(sharpness * share, size=shape) for share in (lost, gained, 1 - lost - gained))
    losses = rng.binomial(counts, down / (down + up + rest))
    return (rng.binomial(counts - losses, up / (up + rest)) - losses).astype(float)


@pytest.mark.parametrize(
    ("lost", "gained", "same", "outcome"),
    [
        (0, 0, 1500, "pass"),
        (10, 12, 1500, "pass"),
        (5, 0, 1500, "pass"),
        (31, 12, 1500, "inconclusive"),
        (20, 20, 1500, "pass"),
        (45, 45, 1500, "inconclusive"),
        (60, 12, 1500, "regression"),
        (0, 0, 100, "inconclusive"),
        (0, 60, 1500, "pass"),
        (1500, 0, 0, "regression"),
        (0, 1500, 0, "pass"),
        (0, 0, 1, "inconclusive"),
        (1, 0, 0, "inconclusive"),
    ],
)
def test_the_whole_interval_decides(lost: int, gained: int, same: int, outcome: str) -> None:
    got = compared(lost, gained, same)

    assert got.outcome == outcome
    assert (got.lost, got.gained, got.documents, got.clusters) == (lost, gained, *[lost + gained + same] * 2)
    assert got.difference == pytest.approx((gained - lost) / got.documents)


def test_without_any_difference_the_interval_is_that_of_two_more_documents() -> None:
    # t(0.95, 2) = 2.91999, times sqrt(1 + 1), over 1500
    got = compared(0, 0, 1500)

    assert got.low == pytest.approx(-2.91999 * math.sqrt(2) / 1500, rel=1e-5)
    assert got.high == -got.low


def test_the_interval_of_independent_documents_by_hand() -> None:
    # n = 100, D = -0.03; e is -0.97, 1.03 and 0.03, over sqrt(0.99)
    second = (4 * 0.97**2 + 1.03**2 + 95 * 0.03**2) / 0.99  # 4.96
    third = (-4 * 0.97**3 + 1.03**3 + 95 * 0.03**3) / 0.99**1.5  # -2.59
    fourth = (4 * 0.97**4 + 1.03**4 + 95 * 0.03**4) / 0.99**2  # 4.76
    assert (second + 2) ** 2 / (fourth + 2) == pytest.approx(7.1635, abs=1e-4)
    reach = 1.88809 * math.sqrt(second + 2) / 100  # t(0.95, 7.1635)
    shift = (1 + 2 * 1.64485**2) / 6 * third / (second + 2) / 100

    got = compared(4, 1, 95)

    assert got.low == pytest.approx(-0.03 - reach + shift, abs=1e-5)
    assert got.high == pytest.approx(-0.03 + reach + shift, abs=1e-5)


def test_the_interval_is_near_the_published_one_of_bonett_and_price() -> None:
    # statpsych's ci.prop.ps(.05, 12, 4, 26, 6), two-sided: 0.2548 to 0.6252
    got = compared(4, 26, 18, alpha=0.025)

    assert got.low == pytest.approx(0.2548, abs=0.03)
    assert got.high == pytest.approx(0.6252, abs=0.03)


def test_documents_of_a_template_count_as_one_when_they_are_lost_together() -> None:
    candidate, reference = answers(300, 0, 2700)
    together = {name: f"t{int(name[1:]) // 20}" for name in candidate}
    apart = {name: f"t{int(name[1:]) % 150}" for name in candidate}

    def width(clusters: Mapping[str, str] | None) -> float:
        got = compare(pair_scores(candidate, reference, clusters))
        return got.high - got.low

    assert width(together) > 3 * width(None)  # sqrt(20) at the most
    assert width(apart) < width(None)  # two of each template are lost: templates do not differ at all


def test_equal_answers_to_few_templates_prove_less_than_to_as_many_documents() -> None:
    # the two more documents have the design effect of templates of 20: sqrt(20) times as wide; t(0.95, 2) as before
    candidate, reference = answers(0, 0, 2000)

    got = compare(pair_scores(candidate, reference, {name: f"t{int(name[1:]) // 20}" for name in candidate}))

    assert got.high == pytest.approx(2.91999 * math.sqrt(2 * 20) / 2000, rel=1e-5)


@pytest.mark.parametrize("documents", [1, 10, 1000])
@pytest.mark.parametrize("right", [0.0, 1.0])
def test_a_single_template_says_nothing_of_others(documents: int, right: float) -> None:
    scores = {str(number): right for number in range(documents)}

    got = compare(pair_scores(scores, scores, dict.fromkeys(scores, "template")))

    assert (got.outcome, got.difference, got.low, got.high) == (Outcome.INCONCLUSIVE, 0.0, -1.0, 1.0)


def test_losses_are_better_when_less_and_have_no_bound() -> None:
    reference = {str(number): 2.0 + number % 7 / 10 for number in range(400)}
    candidate = {name: loss + (0.02 if int(name) % 2 else 0.04) for name, loss in reference.items()}

    got = compare(pair_losses(candidate, reference))

    assert got.outcome is Outcome.REGRESSION
    assert got.difference == pytest.approx(-0.03)
    assert got.candidate - got.reference == pytest.approx(0.03)
    assert -0.032 < got.low < -0.03 < got.high < -0.028
    assert compare(pair_losses(reference, reference)).outcome is Outcome.PASS
    assert compare(pair_losses({"a": 900.0}, {"a": 2.0})).low == -math.inf


def test_the_worst_documents_come_first_and_equal_ones_in_order() -> None:
    reference = {f"d{number:02}": 1.0 for number in range(20)}
    candidate = {name: {"d07": 0.2, "d03": 0.5}.get(name, 0.9) for name in reference}

    worst = compare(pair_scores(candidate, reference)).worst

    assert [name for name, _ in worst] == ["d07", "d03", "d00", "d01", "d02", "d04", "d05", "d06", "d08", "d09"]
    assert worst[0][1] == pytest.approx(0.8)


NOTHING = "changed by 0.00 points (0.41 gained to 0.41 lost)"
GRADED = "lost 50.00 points (100.00 gained to 100.00 lost)"


@pytest.mark.parametrize(
    ("got", "reason"),
    [
        (
            compared(31, 12, 1457),
            "lost 1.27 points (0.55 to 2.04) on 1,500 documents: 31 answers lost, 12 gained; allowed is 1.00",
        ),
        (
            compared(12, 31, 1457),
            "gained 1.27 points (0.55 to 2.04) on 1,500 documents: 12 answers lost, 31 gained; allowed is 1.00",
        ),
        (
            compared(0, 0, 1000),
            f"{NOTHING} on 1,000 documents: 0 answers lost, 0 gained; allowed is 1.00",
        ),
        (
            compare(pair_scores({"a": 0.5}, {"a": 1}, {"a": "t"}), 0.03),
            f"{GRADED} on 1 document: 1 document worse, 0 better; allowed is 3.00",
        ),
        (
            compare(pair_scores(*answers(0, 0, 1000), {"d0000": "t", "d0001": "t"})),
            f"{NOTHING} on 1,000 documents in 999 groups: 0 answers lost, 0 gained; allowed is 1.00",
        ),
        (
            compare(pair_losses({"a": 2.5}, {"a": 2.0})),
            "lost 0.5000 nats (inf gained to inf lost) on 1 document: 1 document worse, 0 better; allowed is 0.0100",
        ),
    ],
)
def test_it_explains_itself_in_one_sentence(got: Comparison, reason: str) -> None:
    assert got.reason == reason


@pytest.mark.parametrize(
    ("candidate", "reference", "clusters", "error", "told"),
    [
        ({}, {}, {}, UsageError, "nothing to compare"),
        ({"a": 1.0}, {}, {}, UsageError, r"^1 document scored for the candidate only \(a\)"),
        (
            {"a": 1.0, "b": 1.0},
            {"b": 1.0, "c": 1.0, "d": 1.0, "e": 1.0, "f": 1.0},
            {},
            UsageError,
            r"^1 document scored for the candidate only \(a\), 4 documents .* reference only \(c, d, e, ...\): ",
        ),
        ({"a": 1.0}, {"a": 1.0}, {"b": "t"}, UsageError, r"clusters name 1 document without a score \(b\)"),
        ({"a": math.nan, "b": 1.0}, {"a": 1.0, "b": 1.0}, {}, EngineError, r"1 score of the candidate .* \(a: nan\)"),
        ({"a": 1.0}, {"a": 1.5}, {}, EngineError, r"1 score of the reference must be numbers from 0 to 1 \(a: 1.5\)"),
        ({"a": -0.1}, {"a": 1.0}, {}, EngineError, "a: -0.1"),
        ({"a": math.inf}, {"a": 1.0}, {}, EngineError, "a: inf"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    candidate: Mapping[str, float],
    reference: Mapping[str, float],
    clusters: Mapping[str, str],
    error: type[Exception],
    told: str,
) -> None:
    with pytest.raises(error, match=told):
        pair_scores(candidate, reference, clusters)


def test_losses_must_be_finite() -> None:
    with pytest.raises(EngineError, match=r"1 score of the candidate must be finite numbers \(a: inf\)"):
        pair_losses({"a": math.inf}, {"a": 1.0})


@pytest.mark.parametrize(("margin", "alpha"), [(0.0, 0.05), (-0.01, 0.05), (math.nan, 0.05), (0.01, 0.0), (0.01, 0.5)])
def test_limits_without_meaning_are_refused(margin: float, alpha: float) -> None:
    with pytest.raises(UsageError):
        compared(1, 1, 8, margin, alpha)


# Invariants

SCORE = st.sampled_from([0.0, 1.0]) | st.floats(0, 1)
DOCUMENTS = st.lists(st.tuples(SCORE, SCORE, st.integers(0, 5)), min_size=1, max_size=40)


def columns(
    documents: list[tuple[float, float, int]], order: list[int] | None = None
) -> tuple[dict[str, float], dict[str, float], dict[str, str]]:
    """Candidate, reference and clusters; cluster 0 is none."""
    rows = [(f"d{number}", *documents[number]) for number in order or range(len(documents))]
    return (
        {name: ours for name, ours, _, _ in rows},
        {name: theirs for name, _, theirs, _ in rows},
        {name: f"t{cluster}" for name, _, _, cluster in rows if cluster},
    )


@given(DOCUMENTS)
def test_swapping_both_mirrors_the_interval(documents: list[tuple[float, float, int]]) -> None:
    ours, theirs, clusters = columns(documents)

    one, other = compare(pair_scores(ours, theirs, clusters)), compare(pair_scores(theirs, ours, clusters))

    assert (one.difference, one.low, one.high) == (-other.difference, -other.high, -other.low)
    assert (one.lost, one.gained, one.candidate) == (other.gained, other.lost, other.reference)


@given(DOCUMENTS, st.randoms())
def test_the_order_of_documents_has_no_influence(documents: list[tuple[float, float, int]], random: object) -> None:
    order = list(range(len(documents)))
    random.shuffle(order)  # type: ignore[attr-defined]

    assert compare(pair_scores(*columns(documents, order))) == compare(pair_scores(*columns(documents)))


@given(DOCUMENTS, st.floats(1e-3, 1), st.floats(1e-3, 1))
def test_a_wider_margin_never_has_a_worse_outcome(
    documents: list[tuple[float, float, int]], margin: float, more: float
) -> None:
    pairing = pair_scores(*columns(documents))

    strict, lenient = compare(pairing, margin), compare(pairing, margin + more)

    assert WORST_FIRST.index(lenient.outcome) >= WORST_FIRST.index(strict.outcome)


@given(DOCUMENTS, st.floats(1e-4, 0.25))
def test_the_interval_has_width_and_holds_the_difference(
    documents: list[tuple[float, float, int]], alpha: float
) -> None:
    got = compare(pair_scores(*columns(documents)), alpha=alpha)

    assert -1 <= got.low <= got.difference <= got.high <= 1
    assert got.high - got.low > 1 / len(documents)


@given(st.integers(0, 30), st.integers(1, 200), st.integers(1, 200))
def test_where_as_much_is_gained_as_lost_more_equal_documents_never_widen(changed: int, same: int, more: int) -> None:
    before, after = compared(changed, changed, same), compared(changed, changed, same + more)

    assert after.high - after.low <= before.high - before.low


@pytest.mark.parametrize("documents", [8, 20, 60])
def test_another_lost_answer_never_looks_better_while_no_more_than_half_differ(documents: int) -> None:
    def ends(lost: int, gained: int) -> Numbers:
        sums = np.repeat([-1.0, 1.0, 0.0], [lost, gained, documents - lost - gained])
        return np.array(interval(sums, np.ones(documents)))

    half = documents // 2
    for lost in range(half):
        for gained in range(half - lost):
            assert (ends(lost + 1, gained) < ends(lost, gained)).all()


# Truth that is known

CHANCE = [0.02, 0.05, 0.08]


@pytest.mark.parametrize("margin", [0.01, 0.03])
@pytest.mark.parametrize("discordance", [1e-9, 0.005, *CHANCE])
@pytest.mark.parametrize("documents", [50, 100, 200, 400, 574, 1000, 2000, 3000, 14000])
def test_independent_documents_pass_a_loss_of_the_margin_with_a_chance_of_alpha(
    documents: int, discordance: float, margin: float
) -> None:
    # The chances are exact here. At 1e-9 the candidate only loses, the hardest case: 5.3 % at the most.
    chances = Plan(documents, discordance=discordance, margin=margin).chances(margin)

    assert chances.passed < 0.0535
    assert chances.regression < 0.0535


@pytest.mark.parametrize("likeness", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("discordance", CHANCE)
@pytest.mark.parametrize("margin", [0.01, 0.03])
def test_templated_documents_hold_the_level_too(margin: float, discordance: float, likeness: float) -> None:
    sums = drawn(TEMPLATES, discordance / 2 + margin, discordance / 2, likeness, seed=1)

    _, low, high = interval(sums, TEMPLATES)

    assert (low > -margin).mean() < ALPHA + ERROR  # passed, though it loses the margin
    assert (high < -margin).mean() < ALPHA + ERROR


@pytest.mark.parametrize("likeness", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("discordance", CHANCE)
def test_an_equal_candidate_is_covered_and_hardly_ever_called_a_regression(discordance: float, likeness: float) -> None:
    _, low, high = interval(drawn(TEMPLATES, discordance / 2, discordance / 2, likeness, seed=2), TEMPLATES)

    assert (low > 0).mean() < ALPHA + ERROR
    assert (high < 0).mean() < ALPHA + ERROR
    assert (high < -0.01).mean() < 0.02
    assert (high < -0.03).mean() < 0.002


@pytest.mark.parametrize("likeness", [0.0, 0.5])
def test_graded_scores_hold_the_level(likeness: float) -> None:
    # Each document has its own noise, and what it shares with its template; skewed, with a mean of -0.01.
    rng = np.random.default_rng(3)
    shared = rng.exponential(0.1, (TIMES, TEMPLATES.size)) - 0.1
    own = (rng.gamma(TEMPLATES, size=(TIMES, TEMPLATES.size)) - TEMPLATES) * 0.1
    sums = TEMPLATES * (-0.01 + math.sqrt(likeness) * shared) + math.sqrt(1 - likeness) * own

    _, low, high = interval(sums, TEMPLATES)

    assert (low > -0.01).mean() < ALPHA + ERROR
    assert (high < -0.01).mean() < ALPHA + ERROR


@pytest.mark.parametrize(("discordance", "margin"), [(0.02, 0.01), (0.05, 0.01), (0.08, 0.03)])
def test_power_of_independent_documents_is_what_simulation_finds(discordance: float, margin: float) -> None:
    plan = Plan(1500, discordance=discordance, margin=margin)
    half = discordance / 2

    _, low, _ = interval(drawn(ALONE, half, half, 0.0, seed=4), ALONE)
    _, _, high = interval(drawn(ALONE, half + 2 * margin, half, 0.0, seed=5), ALONE)

    assert (low > -margin).mean() == pytest.approx(plan.power, abs=0.034)  # 3 standard errors at the most
    assert (high < -margin).mean() == pytest.approx(plan.caught(2), abs=0.034)


@pytest.mark.parametrize(("discordance", "margin"), [(0.02, 0.01), (0.05, 0.01), (0.05, 0.03)])
@pytest.mark.parametrize("likeness", [0.02, 0.1])
def test_power_of_templated_documents_is_near(discordance: float, margin: float, likeness: float) -> None:
    sizes = [int(size) for size in TEMPLATES]
    plan = planned(sizes, likeness=likeness, discordance=discordance, margin=margin)
    half = discordance / 2

    _, low, _ = interval(drawn(TEMPLATES, half, half, likeness, seed=6), TEMPLATES)
    _, _, high = interval(drawn(TEMPLATES, half + 2 * margin, half, likeness, seed=7), TEMPLATES)

    assert (low > -margin).mean() == pytest.approx(plan.power, abs=0.05)
    assert (high < -margin).mean() == pytest.approx(plan.caught(2), abs=0.05)


def test_a_design_effect_grows_with_groups_and_likeness() -> None:
    assert Plan(50, likeness=0.7).design_effect == 1
    assert planned([10] * 50, likeness=0.1).design_effect == pytest.approx(1.9)
    assert planned([10] * 50, likeness=0.0).design_effect == 1
    assert planned([1, 9]).size == pytest.approx(8.2)  # 1/10 of documents are alone, 9/10 among nine


def test_documents_needed_have_the_power_and_a_few_less_have_not() -> None:
    needed = Plan(200).documents_for(0.8)

    assert Plan(needed).power >= 0.8
    assert Plan(needed - 50).power < 0.8
    assert needed == pytest.approx(0.05 * ((1.645 + 0.842) / 0.01) ** 2, rel=0.05)  # the textbook's, large samples


def test_harder_plans_need_more_documents() -> None:
    easy = Plan(1000, size=10.0, likeness=0.0, discordance=0.02, margin=0.03).documents_for()

    assert easy < Plan(1000, size=10.0, likeness=0.1, discordance=0.02, margin=0.03).documents_for()
    assert easy < Plan(1000, size=20.0, likeness=0.0, discordance=0.02, margin=0.03).documents_for()
    assert easy < Plan(1000, size=10.0, likeness=0.0, discordance=0.04, margin=0.03).documents_for()
    assert easy < Plan(1000, size=10.0, likeness=0.0, discordance=0.02, margin=0.02).documents_for()
    assert easy < Plan(1000, size=10.0, likeness=0.0, discordance=0.02, margin=0.03, alpha=0.01).documents_for()


def test_one_cluster_has_no_power_and_extremes_do_not_break() -> None:
    assert Plan(1000, size=1000.0).power == 0
    assert Plan(2).power == 0
    assert Plan(1000, size=499.0, likeness=1.0).power < 0.01
    assert Plan(10**7).power == pytest.approx(1)
    assert Plan(1000, discordance=1.0, margin=0.5).power == pytest.approx(1)


def test_a_run_that_could_not_pass_is_refused_with_what_to_do() -> None:
    plan = Plan(200)
    wider = plan.margin_for() or 0.0
    refuse_underpowered("gsm8k", Plan(14000))

    with pytest.raises(UsageError) as told:
        refuse_underpowered("gsm8k", plan)

    assert str(told.value) == (
        "gsm8k: on 200 documents a candidate that is equal passes with a chance of 11 %, 80 % is asked "
        "(allowed loss 1.0 points, 5.0 % of documents differ by chance): "
        f"take {plan.documents_for():,} documents, or allow a loss of {wider * 100:.1f} points"
    )
    refuse_underpowered("gsm8k", Plan(plan.documents_for()))
    refuse_underpowered("gsm8k", Plan(200, margin=wider))


@pytest.mark.parametrize(
    "wrong",
    [
        {"documents": 0},
        {"size": 0.5},
        {"size": math.inf},
        {"likeness": -0.1},
        {"likeness": 1.1},
        {"discordance": 0.0},
        {"discordance": 1.5},
        {"margin": 0.0},
        {"alpha": 0.5},
    ],
)
def test_plans_without_meaning_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Plan(**{"documents": 200, **wrong})  # type: ignore[arg-type]


def test_more_cannot_be_lost_than_there_is() -> None:
    with pytest.raises(UsageError, match=r"no candidate loses 0\.97"):
        Plan(200).chances(0.97)
