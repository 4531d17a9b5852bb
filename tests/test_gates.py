"""May this build be released? Only measured passes say yes."""

from __future__ import annotations

import pytest
from builders import case, record, result
from hypothesis import given
from hypothesis import strategies as st

from pytest_llamaperf.gates import Decision, decide
from pytest_llamaperf.records import Result, TestRecord
from pytest_llamaperf.verdicts import Outcome

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
