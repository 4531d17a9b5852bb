"""Two builds side by side: what is paired, what is refused, what follows, and which operator is blamed."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llamaperf.comparing.blame import blame
from pytest_llamaperf.comparing.comparison import Comparison, compare
from pytest_llamaperf.comparing.documents import document
from pytest_llamaperf.comparing.judging import Compared
from pytest_llamaperf.comparing.lines import change
from pytest_llamaperf.comparing.markdown import page
from pytest_llamaperf.comparing.pairing import Build
from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.metrics import metric_named
from pytest_llamaperf.observations import Observation
from pytest_llamaperf.runs import to_json
from pytest_llamaperf.verdicts import Outcome

WORK = "llama-3.1-8b/modelopt-fp8/tp1/max-throughput-128-128"
CASE = f"h200/tensorrt-llm/{WORK}"
MACHINE = {"driver": "570.1", "cores": 96, "gpus": [{"product": "NVIDIA H200", "uuid": "GPU-1"}]}
OPERATORS = {"GEMM": 0.012, "attention": 0.002, "all-reduce": 0.001}


def observed(*values: float, metric: str = "output_throughput", **other: Any) -> Observation:
    """A measurement in so many restarts."""
    told = metric_named(metric)
    fields: dict[str, Any] = {
        "case": CASE, "metric": metric, "unit": told.unit, "better": told.better.value, "source": "measured",
        "value": sum(values) / len(values), "run": "a", "harness": "pytest-llamaperf/tensorrt-llm",
        "version": "1.1", "values": values, "settings": {"max_batch_size": 64}, "machine": MACHINE,
    }  # fmt: skip
    return Observation(**{**fields, **other})


def predicted(value: float, **other: Any) -> Observation:
    return observed(value, source="predicted", **{"harness": "pytest-llamaperf/predicted", **other})


def published(value: float, **other: Any) -> Observation:
    return observed(value, source="published", values=(), machine={}, **{"harness": "trtllm-bench", **other})


def later(*observations: Observation) -> tuple[Observation, ...]:
    return tuple(replace(one, run="b", version="1.2") for one in observations)


def comparing(before: Any, after: Any, **options: Any) -> Comparison:
    """Of single observations, or several."""
    ours = before if isinstance(before, tuple) else (before,)
    theirs = after if isinstance(after, tuple) else later(after)
    return compare(Build("A", ours), Build("B", theirs), **options)


def only(comparison: Comparison) -> Compared:
    (found,) = comparison.compared
    return found


QUIET = [(100.0, 100.4, 99.7), (100.2, 99.6, 100.1)]


def test_restarts_that_look_slower_are_suspects_and_never_a_regression() -> None:
    found = only(comparing(observed(*QUIET[0]), observed(80.0, 80.3, 79.9)))

    assert found.outcome == "suspect"
    assert found.loss == pytest.approx(0.2, abs=0.01)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.loss < found.high
    assert found.reason == (
        "lost 20 % (19.5 to 20.4 %) of output_throughput in 3 restarts against 3 of A; fresh restarts of both will tell"
    )


def test_restarts_in_which_a_loss_is_excluded_pass() -> None:
    found = only(comparing(observed(*QUIET[0]), observed(*QUIET[1])))

    assert found.outcome == "pass"
    assert found.reason.endswith("a loss of 3 % or more is excluded")


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 1), (1, 1)])
def test_too_few_restarts_are_told_and_not_judged(before: int, after: int) -> None:
    found = only(comparing(observed(*[100.0] * before), observed(*[50.0] * after)))

    assert (found.outcome, found.loss, found.low) == ("inconclusive", 0.5, None)
    restarts = {1: "1 restart", 2: "2 restarts", 3: "3 restarts"}[before]
    assert found.reason == (
        f"lost 50.0 % of output_throughput; {restarts} before and {after} after, "
        "and 3 and 2 are needed to see how much restarts differ"
    )


@pytest.mark.parametrize(
    ("metric", "after", "outcome", "told"),
    [
        ("output_throughput", 92.0, "regression", "8.0 % worse"),
        ("output_throughput", 99.6, "pass", "0.4 % worse"),
        ("output_throughput", 99.4, "regression", "0.6 % worse"),
        ("output_throughput", 110.0, "pass", "10.0 % better"),
        ("output_throughput", 100.0, "pass", "same"),
        ("tpot_median", 110.0, "regression", "10.0 % worse"),
        ("ttft_median", 100.9, "pass", "0.9 % worse"),
        ("ttft_median", 101.1, "regression", "1.1 % worse"),
        ("ttft_median", 90.0, "pass", "10.0 % better"),
    ],
)
def test_a_prediction_is_exact(metric: str, after: float, outcome: str, told: str) -> None:
    found = only(comparing(predicted(100.0, metric=metric), predicted(after, metric=metric)))

    assert (found.outcome, change(found)) == (outcome, told)
    assert "the predictions are exact" in found.reason


def test_of_published_values_nothing_follows() -> None:
    found = only(comparing(published(100.0), published(50.0)))

    assert (found.outcome, found.loss) == ("inconclusive", 0.5)
    assert "single published values" in found.reason


def test_scores_of_two_runs_are_not_judged_by_restarts() -> None:
    before, after = (observed(*values, metric="accuracy") for values in ((0.7, 0.7, 0.7), (0.6, 0.6, 0.6)))

    found = only(comparing(before, after))

    assert found.outcome == "inconclusive"
    assert "not paired by document" in found.reason


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("kind", [predicted, published, observed])
def test_what_is_no_quantity_is_an_error(bad: float, kind: Any) -> None:
    after = replace(kind(100.0), value=bad, values=())

    for found in (only(comparing(kind(100.0), after)), only(comparing(after, kind(100.0)))):
        assert (found.outcome, found.loss) == ("error", None)
        assert "is no quantity" in found.reason


def test_values_whose_sum_is_beyond_all_numbers_are_compared() -> None:
    huge = observed(1e308, 1.01e308, 0.99e308, value=1e308)

    assert only(comparing(huge, huge)).outcome == "pass"


def test_one_bad_restart_is_an_error_too() -> None:
    after = replace(observed(*QUIET[1]), values=(100.0, math.nan, 100.0))

    comparison = comparing(observed(*QUIET[0]), after)

    assert only(comparison).outcome == "error"
    assert "nan" not in to_json(document(comparison)).lower().replace("nan after", "")


def test_no_answer_right_before_has_no_change_and_none_right_after_is_all_lost() -> None:
    none, some = observed(0.0, metric="accuracy"), observed(0.5, metric="accuracy")

    assert only(comparing(none, some)).loss is None
    assert only(comparing(some, none)).loss == 1.0


def test_a_metric_of_which_no_direction_is_better_is_told() -> None:
    before = observed(10.0, unit="tokens", better="None")

    found = only(comparing(before, replace(before, value=20.0)))

    assert (found.outcome, found.loss) == ("inconclusive", None)
    assert "no direction of it is better" in found.reason


# What may not differ.


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("driver", {"machine": {**MACHINE, "driver": "580.0"}}),
        ("clocks", {"machine": {**MACHINE, "clocks": "1980 MHz"}}),
        ("GPUs", {"machine": {**MACHINE, "gpus": [{"product": "NVIDIA H20", "uuid": "GPU-1"}]}}),
        ("GPU boards", {"machine": {**MACHINE, "gpus": [{"product": "NVIDIA H200", "uuid": "GPU-2"}]}}),
        ("max_batch_size", {"settings": {"max_batch_size": 128}}),
        ("checkpoint", {"settings": {"max_batch_size": 64, "checkpoint": "ab12"}}),
        ("dataset", {"settings": {"max_batch_size": 64, "dataset": "ab12"}}),
        ("harness", {"harness": "trtllm-bench/pytorch"}),
        ("source", {"source": "predicted"}),
        ("hardware", {"case": f"h100/tensorrt-llm/{WORK}"}),
        ("engine", {"case": f"h200/trtllm-bench/{WORK}"}),
        ("lm_eval", {"versions": {"lm_eval": "0.4.9"}}),
        ("setting source", {"settings": {"max_batch_size": 64, "source": "here"}}),
    ],
)
def test_what_is_unlike_is_refused_by_name_unless_allowed(field: str, changes: dict[str, Any]) -> None:
    before, after = observed(*QUIET[0]), replace(observed(*QUIET[1]), **changes)

    refused = comparing(before, after)
    allowed = comparing(before, after, allowed=[field])

    assert refused.compared == ()
    assert [each.field for unlike in refused.unlike for each in unlike.differences] == [field]
    assert only(allowed).outcome == ("inconclusive" if field in ("source", "harness") else "pass")
    assert [each.field for each in only(allowed).allowed] == [field]


@pytest.mark.parametrize("field", ["unit", "better"])
def test_quantities_that_differ_cannot_be_allowed(field: str) -> None:
    before, after = published(1.0), replace(published(1.0), **{field: "tok/s/GPU" if field == "unit" else "lower"})

    assert [each.field for each in comparing(before, after).unlike[0].differences] == [field]
    with pytest.raises(UsageError, match="cannot be allowed to differ"):
        comparing(before, after, allowed=[field])


def test_where_a_prediction_was_made_does_not_matter() -> None:
    found = only(comparing(predicted(100.0), replace(predicted(100.0), machine={"driver": "580.0"})))

    assert found.outcome == "pass"


def test_versions_of_what_came_with_the_build_are_told_and_not_refused() -> None:
    before, after = (observed(*values) for values in QUIET)
    comparison = comparing(
        replace(before, versions={"tensorrt_llm": "1.1", "torch": "2.7"}),
        replace(after, versions={"tensorrt_llm": "1.2", "torch": "2.8"}),
    )

    assert comparison.changed_versions() == {("1.1", "1.2"): 1}
    assert comparison.other_differences() == {("torch", "2.7", "2.8"): 1}


def test_of_several_sources_each_is_paired_with_its_own() -> None:
    before = (observed(*QUIET[0]), predicted(120.0), published(110.0))

    comparison = comparing(before, later(predicted(120.0), observed(*QUIET[1])))

    assert sorted((each.before.source, each.after.source) for each in comparison.compared) == [
        ("measured", "measured"),
        ("predicted", "predicted"),
    ]
    assert comparison.unlike == comparison.missing == comparison.added == ()


def test_measured_never_meets_published_silently() -> None:
    comparison = comparing(observed(*QUIET[0]), published(50.0, harness="pytest-llamaperf/tensorrt-llm"))

    assert comparison.compared == ()
    assert comparison.unlike[0].differences[0].field == "source"


def test_the_latest_of_several_runs_is_compared_and_the_others_tell_the_noise() -> None:
    old = observed(200.0, 260.0, 150.0, when="2026-01-01T00:00:00Z", run="old")
    new = observed(*QUIET[0], when="2026-02-01T00:00:00Z")

    alone = only(comparing(new, observed(*QUIET[1])))
    both = only(comparing((new, old), later(observed(*QUIET[1]))))

    assert both.before.run == "a"
    assert both.high is not None
    assert alone.high is not None
    assert both.high > alone.high


def test_noise_is_not_learned_from_another_harness() -> None:
    other = observed(200.0, 260.0, 150.0, harness="trtllm-bench/pytorch", run="other")

    alone = only(comparing(observed(*QUIET[0]), observed(*QUIET[1])))
    both = only(comparing((observed(*QUIET[0]), other), later(observed(*QUIET[1]))))

    assert (both.low, both.high) == (alone.low, alone.high)


def test_where_no_source_is_common_the_best_evidence_is_put_beside_the_other() -> None:
    comparison = comparing((published(90.0), observed(*QUIET[0])), later(predicted(100.0)))

    (unlike,) = comparison.unlike
    assert (unlike.pair.before.source, unlike.pair.after.source) == ("measured", "predicted")


@pytest.mark.parametrize(("slower", "stale"), [(5, False), (6, True)])
def test_more_suspects_than_a_quarter_of_what_was_screened_may_be_the_day(slower: int, stale: bool) -> None:
    cases = [f"{CASE}-{n}" for n in range(20)]
    before = tuple(observed(*QUIET[0], case=case) for case in cases)
    after = later(
        *(
            observed(*([80.0, 80.3, 79.9] if n < slower else QUIET[1]), case=case)  # 20 % less, or nothing
            for n, case in enumerate(cases)
        )
    )
    exact = tuple(predicted(100.0, case=f"{CASE}-predicted-{n}") for n in range(20))

    comparison = comparing((*before, *exact), (*after, *later(*exact)))

    assert len(comparison.having(Outcome.SUSPECT)) == slower
    assert comparison.stale is stale


def test_two_versions_of_one_publication_are_not_the_same() -> None:
    before, after = published(100.0, run="blog"), published(90.0, run="blog", version="1.2")

    assert only(comparing(before, (after,))).outcome == "inconclusive"


def test_what_only_one_side_has_is_listed_with_the_reason_where_it_is_known() -> None:
    gone, new = (observed(1.0, case=f"h200/tensorrt-llm/llama-3.1-8b/bf16/tp{n}/min-latency-8-8") for n in (1, 2))
    ours = Build("A", (observed(*QUIET[0]), gone))
    theirs = Build("B", later(observed(*QUIET[1]), new), {gone.case: "error: out of memory"})

    comparison = compare(ours, theirs)

    assert [(each.observation.case, each.why) for each in comparison.missing] == [(gone.case, "error: out of memory")]
    assert [(each.observation.case, each.why) for each in comparison.added] == [(new.case, None)]


def test_other_hardware_is_paired_only_where_the_sides_have_none_in_common() -> None:
    elsewhere = replace(observed(*QUIET[1]), case=f"h100/tensorrt-llm/{WORK}")
    here = observed(1.0, case="h200/tensorrt-llm/llama-3.1-8b/bf16/tp1/min-latency-8-8")

    comparison = comparing(observed(*QUIET[0]), later(elsewhere, here))

    assert comparison.unlike == ()
    assert (len(comparison.missing), len(comparison.added)) == (1, 2)


def test_an_empty_side_leaves_everything_missing() -> None:
    comparison = compare(Build("A", (observed(*QUIET[0]),)), Build("B", ()))

    assert comparison.counts == {"missing": 1}
    assert comparison.conclusion == "nothing could be compared: 1 missing"
    assert compare(Build("A", ()), Build("B", ())).conclusion == "nothing could be compared: there is nothing"


def test_a_run_is_not_compared_with_itself() -> None:
    with pytest.raises(UsageError, match=r"A and B are the same \(a\): there is nothing to compare"):
        comparing(observed(*QUIET[0]), (observed(*QUIET[0]),))


# Which operator.


def test_a_slower_gemm_is_blamed_by_name() -> None:
    slower = {**OPERATORS, "GEMM": 0.0132}

    (phase,) = blame("tpot_median", {"decode": OPERATORS}, {"decode": slower})

    assert str(phase) == "decode 8.0 % slower: GEMM +10.0 %, all else equal"
    assert phase.culprit is not None
    assert phase.culprit.kind == "GEMM"


def test_several_moves_are_told_in_points_of_the_iteration() -> None:
    moved = {"GEMM": 0.0132, "attention": 0.0019, "all-reduce": 0.001, "other": 0.0003}

    (phase,) = blame("tpot_median", {"decode": OPERATORS}, {"decode": moved})

    assert str(phase) == (
        "decode 9.3 % slower: +8.0 points by GEMM (+10.0 %), +2.0 points by other (new), "
        "-0.7 points by attention (-5.0 %), all else equal"
    )


@pytest.mark.parametrize(
    ("metric", "phases"),
    [
        ("tpot_p99", ["decode"]),
        ("ttft_median", ["prompt"]),
        ("output_throughput", ["decode", "prompt"]),
        ("output_throughput vs bf16", []),
    ],
)
def test_a_metric_is_explained_by_the_iterations_it_is_made_of(metric: str, phases: list[str]) -> None:
    slower = {**OPERATORS, "GEMM": 0.0132}
    both = ({name: OPERATORS for name in ("decode", "prompt")}, {name: slower for name in ("decode", "prompt")})

    assert [phase.name for phase in blame(metric, *both)] == phases
    assert blame(metric, both[0], both[0]) == blame(metric, both[0], {}) == ()


def attention(value: float, operators: dict[str, float], how: str) -> Observation:
    return predicted(value, metric="tpot_median", operators={"decode": operators}, settings={"decode_attention": how})


def test_an_operator_that_was_timed_otherwise_is_not_blamed() -> None:
    before = attention(0.015, OPERATORS, "up to rc10")
    slower_attention = attention(0.0158, {**OPERATORS, "attention": 0.0028}, "from rc20")
    slower_gemm = attention(0.0170, {**OPERATORS, "attention": 0.0028, "GEMM": 0.0132}, "from rc20")

    assert comparing(before, slower_attention).compared == ()
    found = only(comparing(before, slower_attention, allowed=["decode_attention"]))
    assert found.outcome == "inconclusive"
    assert "timed in different ways" in found.reason
    blamed = comparing(before, slower_gemm, allowed=["decode_attention"])
    assert only(blamed).outcome == "regression"
    assert [(culprit.kind, culprit.of) for culprit in blamed.culprits] == [("GEMM", 1)]
    assert "attention +40.0 % is not blamed" in str(only(blamed).phases[0])


def test_what_moved_against_the_iteration_is_not_its_culprit() -> None:
    moved = {"GEMM": 0.009, "attention": 0.0045, "all-reduce": 0.003}

    (phase,) = blame("tpot_median", {"decode": OPERATORS}, {"decode": moved})

    assert phase.slower > 0
    assert phase.moves[0].kind == "GEMM"
    assert phase.culprit is not None
    assert phase.culprit.kind == "attention"


def test_of_two_iterations_the_one_that_got_slower_by_more_has_the_culprit() -> None:
    before = predicted(100.0, operators={"decode": OPERATORS, "prompt": OPERATORS})
    after = predicted(
        80.0, operators={"decode": {**OPERATORS, "GEMM": 0.0125}, "prompt": {**OPERATORS, "all-reduce": 0.005}}
    )

    assert [culprit.kind for culprit in comparing(before, after).culprits] == ["all-reduce"]


def test_one_iteration_that_turns_on_what_was_timed_otherwise_leaves_it_open() -> None:
    before, after = (
        predicted(value, settings={"decode_attention": how}, operators={"decode": decode, "prompt": prompt})
        for value, how, decode, prompt in (
            (100.0, "up to rc10", OPERATORS, OPERATORS),
            (90.0, "from rc20", {**OPERATORS, "attention": 0.004}, {**OPERATORS, "GEMM": 0.0125}),
        )
    )

    assert only(comparing(before, after, allowed=["decode_attention"])).outcome == "inconclusive"


def test_a_gain_that_only_the_timing_of_an_operator_shows_hides_no_loss() -> None:
    before = attention(0.015, OPERATORS, "from rc20")
    after = attention(0.0145, {**OPERATORS, "attention": 0.0003, "GEMM": 0.0132}, "up to rc10")

    assert only(comparing(before, after, allowed=["decode_attention"])).outcome == "inconclusive"


# Invariants.

values = st.floats(1e-3, 1e6)
observations = st.one_of(
    st.builds(lambda v, m: predicted(v, metric=m), values, st.sampled_from(["output_throughput", "tpot_median"])),
    st.builds(lambda v: published(v), values),
    st.builds(lambda *v: observed(*v), *[st.floats(90, 110)] * 3),
)


@given(st.lists(st.tuples(observations, values), max_size=8), st.randoms(use_true_random=False))
def test_swapped_sides_turn_losses_into_gains_and_order_does_not_matter(rows: Any, random: Any) -> None:
    before = tuple(replace(one, case=f"{CASE}-{n}") for n, (one, _) in enumerate(rows))
    after = later(*(replace(one, value=other, values=(other,) * len(one.values))
                    for one, (_, other) in zip(before, rows, strict=True)))  # fmt: skip
    shuffled = tuple(random.sample(after, len(after)))

    there = compare(Build("A", before), Build("B", after))
    back = compare(Build("B", shuffled), Build("A", tuple(reversed(before))))

    assert compare(Build("A", tuple(reversed(before))), Build("B", shuffled)) == replace(
        there, before=Build("A", tuple(reversed(before))), after=Build("B", shuffled)
    )
    returned = {each.case: each.worse for each in back.compared}
    assert {each.case: each.worse for each in there.compared} == {
        case: pytest.approx(-worse, abs=1e-9) for case, worse in returned.items() if worse is not None
    }
    assert all(each.loss is None or each.worse is None or each.loss * each.worse >= 0 for each in there.compared)


@given(st.lists(observations, max_size=6))
def test_whatever_is_compared_can_be_written_and_losses_come_first(found: list[Observation]) -> None:
    before = tuple(replace(one, case=f"{CASE}-{n}") for n, one in enumerate(found))
    comparison = compare(Build("A", before), Build("B", later(*reversed(before))))

    to_json(document(comparison))
    assert page(comparison, None).startswith("## A → B")
    for outcome in {each.outcome for each in comparison.compared}:
        losses = [each.loss for each in comparison.having(outcome) if each.loss is not None]
        assert losses == sorted(losses, reverse=True)


def test_a_release_that_lost_nothing_has_no_regression_and_few_suspects() -> None:
    rng = np.random.default_rng(7)
    metrics = {"output_throughput": 0.006, "tpot_median": 0.005, "request_latency_median": 0.007, "ttft_median": 0.022}

    def run() -> tuple[Observation, ...]:
        return tuple(
            observed(*(100 * np.exp(noise * rng.standard_normal(3))).tolist(), metric=metric, case=f"{CASE}-{n}")
            for n in range(500)
            for metric, noise in metrics.items()
        )

    comparison = comparing(run(), later(*run()))

    assert comparison.having(Outcome.REGRESSION) == ()
    suspects = [each.metric for each in comparison.compared if each.outcome == "suspect"]
    assert len(suspects) < 0.05 * len(comparison.compared)


def test_a_loss_of_five_percent_in_every_case_is_nearly_always_a_suspect() -> None:
    rng = np.random.default_rng(8)

    def run(level: float) -> tuple[Observation, ...]:
        return tuple(
            observed(*(level * np.exp(0.006 * rng.standard_normal(3))).tolist(), case=f"{CASE}-{n}") for n in range(500)
        )

    comparison = comparing(run(100), later(*run(95)))

    assert len(comparison.having(Outcome.SUSPECT)) > 495
    assert comparison.stale
