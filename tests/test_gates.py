"""May this build be released? Only measured passes say yes."""

from __future__ import annotations

import dataclasses
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from builders import case, record, result
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from pytest_llamaperf.gates import Decision, Missing, decide
from pytest_llamaperf.records import WAIVED, Result, TestRecord
from pytest_llamaperf.requirements import Requirement
from pytest_llamaperf.verdicts import Outcome
from pytest_llamaperf.waivers import Waiver, Waivers

CASE = case().id


def test_measured_passes_release() -> None:
    passes = [record(result(nodeid=f"suites/test_a.py::test_{n}")) for n in range(3)]

    assert decide(passes) == Decision(())
    assert decide(passes).releasable


def test_a_test_of_several_passes_releases() -> None:
    assert decide([record(result(), result())]).releasable


@pytest.mark.parametrize("tests", [[], [record()], [record(), record(nodeid="suites/test_a.py::test_c")]])
def test_nothing_judged_is_not_releasable(tests: list[TestRecord]) -> None:
    assert decide(tests).reasons == ("nothing was judged",)


@pytest.mark.parametrize("outcome", [o for o in Outcome if o is not Outcome.PASS])
def test_every_outcome_but_pass_blocks_and_names_case_and_metric(outcome: Outcome) -> None:
    decision = decide([record(result()), record(result(outcome, nodeid="suites/test_a.py::test_c"))])

    assert not decision.releasable
    assert decision.reasons == (f"{outcome}: {CASE} output_throughput",)


def test_an_error_has_no_metric_to_name() -> None:
    error = Result.of_error("suites/test_a.py::test_b", case().to_dict(), "out of memory")

    assert decide([record(result()), record(error, outcome="failed")]).reasons == (f"error: {CASE}",)


def test_a_predicted_pass_blocks() -> None:
    tests = [record(result()), record(result(source="predicted"), result(source="predicted"))]

    assert decide(tests).reasons == ("predicted, not measured: 2 results",)


@pytest.mark.parametrize("source", ["published", None, "remembered"])
def test_a_pass_of_anything_but_a_measurement_blocks(source: str | None) -> None:
    assert not decide([record(result()), record(result(source=source))]).releasable


@pytest.mark.parametrize("outcome", ["passed", "PASS", "", "slower"])
def test_a_word_that_is_no_outcome_blocks(outcome: str) -> None:
    assert not decide([record(result()), record(result(outcome))]).releasable


@pytest.mark.parametrize("outcome", ["failed", "error"])
def test_a_test_that_broke_without_a_verdict_blocks_and_says_why(outcome: str) -> None:
    broken = record(outcome=outcome, reason="KeyError: 'x'", nodeid="suites/test_a.py::test_c")

    assert decide([record(result()), broken]).reasons == (f"{outcome}: suites/test_a.py::test_c: KeyError: 'x'",)


def test_a_test_that_failed_beside_its_pass_blocks() -> None:
    assert decide([record(result(), outcome="failed")]).reasons == ("failed: suites/test_a.py::test_b",)


def test_a_test_that_failed_by_its_verdict_is_one_reason_not_two() -> None:
    tests = [record(result("regression"), outcome="failed", reason="h200/...")]

    assert decide(tests).reasons == (f"regression: {CASE} output_throughput",)


def test_tests_skipped_alike_are_one_reason() -> None:
    skipped = [
        record(outcome="skipped", reason=reason, nodeid=f"suites/test_a.py::test_{n}")
        for n, reason in enumerate(["needs 8 H200, found 1", "needs 8 H200, found 1", ""])
    ]

    assert decide([record(result()), *skipped]).reasons == (
        "skipped: 2 tests: needs 8 H200, found 1",
        "skipped: 1 test: no reason given",
    )


def test_a_test_skipped_for_its_verdict_is_one_reason_not_two() -> None:
    tests = [record(result("no-baseline"), outcome="skipped", reason="h200/...")]

    assert decide(tests).reasons == (f"no-baseline: {CASE} output_throughput",)


def test_a_passed_test_that_judged_nothing_does_not_block_those_that_did() -> None:
    assert decide([record(result()), record(nodeid="suites/test_a.py::test_helper")]).releasable


def test_tests_that_never_ran_block() -> None:
    assert decide([record(result())], not_run=0).releasable
    assert decide([record(result())], not_run=2).reasons == ("not run: 2 tests",)


def test_the_worst_is_told_first() -> None:
    worst_last = [
        record(result(outcome, nodeid=f"suites/test_a.py::test_{outcome}"))
        for outcome in ("no-baseline", "suspect", "inconclusive", "error", "regression")
    ]

    assert [reason.partition(":")[0] for reason in decide(worst_last).reasons] == [
        "regression", "error", "inconclusive", "suspect", "no-baseline",
    ]  # fmt: skip


# --- waivers -------------------------------------------------------------------------------------------------------

WAIVER = Waiver(
    CASE, "output_throughput", 0.12, "the fused kernel is off", "serving team", date(2027, 1, 31), Version("1.2.1"),
    Path("waivers.yaml"), 5,
)  # fmt: skip
WAIVERS = Waivers([WAIVER], date(2026, 11, 26))
TERMS = "waived until 2027-01-31 by serving team: the fused kernel is off (waivers.yaml:5)"


def waived(nodeid: str = "suites/test_a.py::test_w", **other: Any) -> Result:
    """A regression as a session leaves it that found its waiver."""
    found = dataclasses.replace(
        result("regression", nodeid=nodeid),
        value=416.8, low=412.2, high=421.4, fingerprint={"versions": {"tensorrt_llm": "1.2.1"}}, waiver=WAIVER.to_dict(),
    )  # fmt: skip
    return dataclasses.replace(found, **other)


def test_a_build_is_released_with_its_waivers_and_says_so() -> None:
    decision = decide([record(result()), record(waived(), outcome=WAIVED)], waivers=WAIVERS)

    assert decision.releasable
    assert decision.waived == (f"{CASE}: one sentence, {TERMS}",)
    assert str(decision) == f"released with 1 waiver: {CASE}: one sentence, {TERMS}"


def test_waivers_alone_release_nothing_that_was_not_judged() -> None:
    (nothing, unused) = decide([], waivers=WAIVERS).reasons

    assert nothing == "nothing was judged"
    assert unused.endswith("output_throughput: not used, for no test judged it; judge it, or remove it")


def test_a_waiver_for_what_passes_closes_the_gate() -> None:
    decision = decide([record(result())], waivers=WAIVERS)

    assert decision.reasons == (
        f"waiver in waivers.yaml:5: {CASE} output_throughput: not used, for the promise was kept; remove it",
    )


def test_an_expired_waiver_closes_the_gate_and_waives_nothing() -> None:
    late = Waivers([WAIVER], date(2027, 2, 1))

    decision = decide([record(waived(waiver=None), outcome="failed")], waivers=late)

    assert decision.reasons == (
        f"regression: {CASE} output_throughput",
        f"waiver in waivers.yaml:5: {CASE} output_throughput: expired on 2027-01-31; serving team renews or removes it",
    )


@pytest.mark.parametrize(
    "now",
    [
        Waivers((), date(2026, 11, 26)),
        Waivers([WAIVER], date(2027, 2, 1)),
        Waivers([dataclasses.replace(WAIVER, loss=0.01)], date(2026, 11, 26)),
    ],
    ids=["gone", "expired", "smaller"],
)
def test_what_was_waived_counts_as_a_regression_where_no_waiver_covers_it_any_more(now: Waivers) -> None:
    """Shards are merged, and sessions go on, after the waivers were read that a test ended by."""
    decision = decide([record(result()), record(waived(), outcome=WAIVED)], waivers=now)

    assert decision.waived == ()
    assert f"regression: {CASE} output_throughput: no waiver covers it any more; it was {TERMS}" in decision.reasons


@pytest.mark.parametrize("outcome", [o for o in Outcome if o not in (Outcome.PASS, Outcome.REGRESSION)])
def test_a_result_that_names_a_waiver_is_not_waived_for_that(outcome: Outcome) -> None:
    decision = decide([record(result()), record(waived(outcome=outcome.value), outcome=WAIVED)])

    assert f"{outcome}: {CASE} output_throughput" in decision.reasons
    assert decision.waived == ()


def test_a_prediction_that_names_a_waiver_is_not_waived_for_that() -> None:
    decision = decide([record(waived(source="predicted"), outcome=WAIVED)])

    assert decision.reasons == (f"regression: {CASE} output_throughput", "predicted, not measured: 1 result")


@pytest.mark.parametrize("outcome", ["failed", "error", "unfinished", "skipped"])
def test_a_waiver_hides_nothing_else_that_became_of_its_test(outcome: str) -> None:
    decision = decide([record(waived(), outcome=outcome, reason="KeyError: 'x'")], waivers=WAIVERS)

    assert not decision.releasable
    assert "KeyError: 'x'" in decision.reasons[0]


def test_a_waived_regression_beside_one_that_is_not_closes_the_gate() -> None:
    other = dataclasses.replace(waived(waiver=None), metric="ttft_p99")

    decision = decide([record(waived(), other, outcome="failed")], waivers=WAIVERS)

    assert decision.reasons == (f"regression: {CASE} ttft_p99",)
    assert len(decision.waived) == 1


def test_what_has_no_metric_is_judged_by_a_pass_alone() -> None:
    """A waived loss beside it is no word on whether the answers are alike."""
    about = dataclasses.replace(record(waived(), outcome=WAIVED), case=CASE)

    decision = decide([about], required=[Requirement(CASE, None, "gates/h200.yaml:5")], waivers=WAIVERS)

    assert [each.why for each in decision.missing] == [WAIVED]
    assert not decision.releasable


def test_a_test_that_was_waived_at_a_second_attempt_closes_the_gate() -> None:
    tried = dataclasses.replace(record(waived(), outcome=WAIVED), attempts=2)

    assert decide([tried], waivers=WAIVERS).reasons == ("retried: suites/test_a.py::test_w: waived at attempt 2",)


# --- what has to be there ------------------------------------------------------------------------------------------

OTHER = CASE.replace("128-128", "128-2048")
NEEDED = Requirement(OTHER, "output_throughput", "gates/h200.yaml:9")


def test_what_is_required_and_judged_releases() -> None:
    required = [Requirement(CASE, "output_throughput", "gates/h200.yaml:9")]

    assert decide([record(result())], required=required) == Decision((), required=1)


@pytest.mark.parametrize(
    ("tests", "deselected", "why"),
    [
        ([], [], "no test about it ran"),
        ([], [OTHER], "deselected"),
        (
            [TestRecord("a::b", "skipped", 0.0, "needs 8 H200, found 1", case=OTHER)],
            [],
            "skipped: needs 8 H200, found 1",
        ),
        ([TestRecord("a::b", "unfinished", 0.0, case=OTHER)], [], "unfinished"),
        ([TestRecord("a::b", "failed", 0.0, "worker died", case=OTHER)], [OTHER], "failed: worker died"),
        ([TestRecord("a::b", "passed", 0.0, case=OTHER)], [], "its tests judge something else"),
    ],
)
def test_what_is_required_and_not_judged_blocks_with_its_cause(
    tests: list[TestRecord], deselected: list[str], why: str
) -> None:
    decision = decide([record(result()), *tests], required=[NEEDED], deselected=deselected)

    assert f"required and not judged: {OTHER} output_throughput: {why}" in decision.reasons
    assert decision.missing == (Missing(OTHER, "output_throughput", "gates/h200.yaml:9", why),)


def test_an_error_is_no_judgement_of_what_is_required() -> None:
    error = Result.of_error("a::b", {**case().to_dict(), "id": OTHER}, "out of memory")
    broken = dataclasses.replace(record(error, outcome="failed", reason="error"), case=OTHER)
    fixed = Requirement(OTHER, None, "gates/h200.yaml:12")

    decision = decide([record(result()), broken], required=[NEEDED, fixed])

    assert decision.missing == tuple(
        Missing(each.case, each.metric, each.place, "failed: error") for each in (NEEDED, fixed)
    )


def test_a_case_that_no_metric_judges_needs_a_test_that_passes() -> None:
    needed = [Requirement(OTHER, None, "gates/h200.yaml:12")]

    def decided(outcome: str) -> Decision:
        return decide([record(result()), TestRecord("a::b", outcome, 0.0, "why", case=OTHER)], required=needed)

    assert decided("passed").releasable
    assert f"required and not judged: {OTHER}: skipped: why" in decided("skipped").reasons


def test_what_is_missing_for_one_cause_is_one_reason_and_listed_whole() -> None:
    needed = [Requirement(OTHER.replace("2048", str(n)), "output_throughput", "gates/h200.yaml:9") for n in range(5)]
    promised = [*needed, NEEDED, Requirement(CASE, "output_throughput", "baselines/h200/llama-3.1-8b.yaml:13")]

    decision = decide([record(result())], required=needed, promised=promised)

    assert decision.reasons == (
        f"required and not judged: {needed[0]} and 4 others: no test about it ran",
        f"promised and not judged: {NEEDED}",
    )
    assert [(each.case, each.metric) for each in decision.missing] == [
        (each.case, each.metric) for each in promised[:6]
    ]
    assert decision.required == 5


def test_a_decision_is_read_back_as_it_was_written() -> None:
    decision = decide([record(waived(), outcome=WAIVED)], required=[NEEDED], waivers=WAIVERS)

    assert Decision.from_dict(decision.to_dict()) == decision


def test_a_decision_of_a_version_that_knew_no_waivers_is_read() -> None:
    assert Decision.from_dict({"releasable": False, "reasons": ["slower"]}) == Decision(("slower",))


RELEASABLE = st.lists(st.just(record(result())), min_size=1, max_size=5)
OUTCOMES = st.sampled_from([o.value for o in Outcome if o is not Outcome.PASS])


@given(RELEASABLE, OUTCOMES, st.sampled_from(["measured", "predicted"]), st.integers(0, 5))
def test_no_releasable_run_stays_so_with_a_result_that_is_no_pass(
    tests: list[TestRecord], outcome: str, source: str, at: int
) -> None:
    assert decide(tests).releasable

    tests = [*tests[:at], record(result(outcome, source)), *tests[at:]]

    assert not decide(tests).releasable


@given(RELEASABLE, st.sampled_from(["failed", "error", "skipped"]), st.text(max_size=5), st.integers(0, 5))
def test_no_releasable_run_stays_so_with_a_test_that_did_not_pass(
    tests: list[TestRecord], outcome: str, reason: str, at: int
) -> None:
    extra = record(outcome=outcome, reason=reason, nodeid="suites/test_a.py::test_c")

    assert not decide([*tests[:at], extra, *tests[at:]]).releasable


@given(RELEASABLE, st.sets(st.sampled_from([CASE, OTHER, "another"])), st.sets(st.sampled_from([CASE, OTHER])))
def test_no_run_is_releasable_without_all_that_is_required(
    tests: list[TestRecord], required: set[str], promised: set[str]
) -> None:
    def asked(cases: set[str]) -> list[Requirement]:
        return [Requirement(each, "output_throughput", "somewhere:1") for each in sorted(cases)]

    decision = decide(tests, required=asked(required), promised=asked(promised))

    assert decision.releasable == (required | promised <= {CASE})
    assert {each.case for each in decision.missing} == (required | promised) - {CASE}


def test_an_error_of_cleaning_up_is_named_beside_a_result_that_is_no_pass() -> None:
    test = record(result("no-baseline"), outcome="error", reason="GPU 0 still holds 3.0 GiB")

    assert any("still holds" in reason for reason in decide([test]).reasons)


@pytest.mark.parametrize(
    ("health", "why"),
    [
        ({"blind": "GPU is lost", "gpus": []}, "GPU is lost"),
        ({}, "it does not say how the GPUs did"),
        ({"blind": None, "gpus": []}, None),
    ],
)
def test_what_was_timed_on_gpus_that_nobody_watched_releases_nothing(health: dict[str, Any], why: str | None) -> None:
    timed = dataclasses.replace(result(), metrics={"output_throughput": 472.75}, health=health)

    decision = decide([record(timed), record(dataclasses.replace(timed, nodeid="suites/test_a.py::test_c"))])

    assert decision.reasons == (() if why is None else (f"measured blind: 2 results: {why}",))


def test_on_a_cpu_there_is_nothing_to_watch() -> None:
    on_cpu = {**result().case, "hardware": "cpu"}

    assert decide([record(dataclasses.replace(result(), case=on_cpu, metrics={"output_throughput": 1.0}))]).releasable


def test_a_run_that_was_cut_off_is_told_how_to_go_on() -> None:
    assert Decision(("the session ended early, by SIGTERM",)).remedies == (
        "the session ended early: where it had --results, the same command with --resume goes on",
    )
