"""Is the promise kept? The interval against the limit, and the words for it."""

from __future__ import annotations

import pytest
from builders import between, case, measured, predicted, promise
from hypothesis import given
from hypothesis import strategies as st

from pytest_llamaperf.measurements import Fingerprint, Source, Summary
from pytest_llamaperf.metrics import OUTPUT_THROUGHPUT, TTFT_P99, Metric
from pytest_llamaperf.verdicts import Outcome, Verdict, judge

HIGHER, LOWER = OUTPUT_THROUGHPUT, TTFT_P99
ENDS = st.tuples(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3)).map(lambda ends: (min(ends), max(ends)))
WORST_FIRST = [Outcome.REGRESSION, Outcome.INCONCLUSIVE, Outcome.PASS]


def verdict(summary: Summary, value: float = 100.0, tolerance: float = 0.25) -> Verdict:
    """Judged against 100 with 25 %: the limit is exactly 75 or, where lower is better, 125."""
    return judge(case(), summary, promise(value, tolerance, summary.metric))


@pytest.mark.parametrize(
    ("metric", "low", "high", "outcome"),
    [
        (HIGHER, 75.0, 80.0, "pass"),
        (HIGHER, 75.0, 75.0, "pass"),
        (HIGHER, 74.999, 80.0, "inconclusive"),
        (HIGHER, 70.0, 75.0, "inconclusive"),
        (HIGHER, 70.0, 74.999, "regression"),
        (HIGHER, 74.999, 74.999, "regression"),
        (HIGHER, 200.0, 300.0, "pass"),
        (LOWER, 120.0, 125.0, "pass"),
        (LOWER, 125.0, 125.0, "pass"),
        (LOWER, 120.0, 125.001, "inconclusive"),
        (LOWER, 125.0, 130.0, "inconclusive"),
        (LOWER, 125.001, 130.0, "regression"),
        (LOWER, 125.001, 125.001, "regression"),
        (LOWER, 1.0, 2.0, "pass"),
    ],
)
def test_a_measurement_is_judged_by_its_whole_interval(metric: Metric, low: float, high: float, outcome: str) -> None:
    assert verdict(between(low, high, metric)).outcome == outcome


@pytest.mark.parametrize(
    ("metric", "value", "outcome"),
    [
        (HIGHER, 75.0, "pass"),
        (HIGHER, 74.999, "regression"),
        (LOWER, 125.0, "pass"),
        (LOWER, 125.001, "regression"),
    ],
)
def test_a_prediction_is_judged_by_its_value(metric: Metric, value: float, outcome: str) -> None:
    assert verdict(predicted(value, metric)).outcome == outcome


@pytest.mark.parametrize("value", [1.0, 75.0, 1000.0])
def test_a_single_measured_restart_is_inconclusive_however_good_or_bad(value: float) -> None:
    assert verdict(measured(value)).outcome is Outcome.INCONCLUSIVE


@pytest.mark.parametrize("metric", [HIGHER, LOWER])
def test_without_tolerance_the_promise_is_the_limit(metric: Metric) -> None:
    assert verdict(between(100.0, 100.0, metric), tolerance=0.0).outcome is Outcome.PASS


@pytest.mark.parametrize("summary", [measured(100.0, 101.0), predicted(100.0)])
def test_without_a_promise_there_is_no_pass(summary: Summary) -> None:
    got = judge(case(), summary, None)

    assert got.outcome is Outcome.NO_BASELINE
    assert got.baseline is None
    assert got.reason.endswith("; nothing is promised for it")


def test_notes_stay_with_the_verdict() -> None:
    assert judge(case(), predicted(100.0), promise(100.0), ("extrapolated",)).notes == ("extrapolated",)
    assert judge(case(), predicted(100.0), None, ("extrapolated",)).notes == ("extrapolated",)


def test_what_produced_the_value_stays_with_the_verdict() -> None:
    fingerprint = Fingerprint({"tensorrt_llm": "1.2.1"}, {"max_batch_size": 64})

    assert judge(case(), predicted(100.0), promise(100.0), (), fingerprint).fingerprint == fingerprint
    assert judge(case(), predicted(100.0), promise(100.0)).fingerprint == Fingerprint()


@given(
    st.sampled_from([HIGHER, LOWER]),
    ENDS,
    st.floats(0, 1e3),
    st.floats(1e-3, 1e3),
    st.floats(0, 0.99),
)
def test_a_worse_interval_never_has_a_better_outcome(
    metric: Metric, ends: tuple[float, float], loss: float, value: float, tolerance: float
) -> None:
    worse = -loss if metric is HIGHER else loss

    before = verdict(between(*ends, metric), value, tolerance).outcome
    after = verdict(between(ends[0] + worse, ends[1] + worse, metric), value, tolerance).outcome

    assert WORST_FIRST.index(after) <= WORST_FIRST.index(before)


@given(
    st.sampled_from([HIGHER, LOWER]), st.floats(1e-3, 1e3), st.floats(0, 1e3), st.floats(1e-3, 1e3), st.floats(0, 0.99)
)
def test_a_worse_prediction_never_has_a_better_outcome(
    metric: Metric, value: float, loss: float, promised: float, tolerance: float
) -> None:
    worse = -loss if metric is HIGHER else loss

    before = verdict(predicted(value, metric), promised, tolerance).outcome
    after = verdict(predicted(value + worse, metric), promised, tolerance).outcome

    assert WORST_FIRST.index(after) <= WORST_FIRST.index(before)


@given(
    st.sampled_from([HIGHER, LOWER]),
    ENDS,
    st.floats(1e-3, 1e3),
    st.floats(0, 0.5),
    st.floats(0, 0.49),
)
def test_more_tolerance_never_has_a_worse_outcome(
    metric: Metric, ends: tuple[float, float], value: float, tolerance: float, more: float
) -> None:
    strict = verdict(between(*ends, metric), value, tolerance).outcome
    lenient = verdict(between(*ends, metric), value, tolerance + more).outcome

    assert WORST_FIRST.index(lenient) >= WORST_FIRST.index(strict)


def test_a_regression_tells_promise_fact_difference_place_and_what_to_do() -> None:
    # 463.1 less 10 % is 416.79; 350 / 463.1 = 0.7558; 350 / 416.79 = 0.8398
    summary = Summary(HIGHER, Source.MEASURED, (348.0, 350.0, 352.0), 350.0, 344.2, 355.8)

    fact = "350.0 tok/s (344.2 tok/s to 355.8 tok/s)"

    got = judge(case(), summary, promise(463.1, 0.10))

    assert str(got).splitlines() == [
        "h200/tensorrt-llm/llama-3.1-8b/modelopt-fp8/tp1/max-throughput-128-128",
        "  output_throughput: regression",
        "    promised   463.1 tok/s, so at least 416.8 tok/s (10 % tolerance)",
        f"    measured   {fact}, 3 restarts: -24.4 % against the promise, -16.0 % against the limit",
        "    promise in baselines/h200/llama-3.1-8b.yaml:7 (published, perf-overview.md)",
        "    to do      find the change that cost this; if it is wanted, lower the promise in a commit of its own",
    ]
    assert got.reason == f"output_throughput measured {fact}, promised 463.1 tok/s (published): -24.4 %"


def test_a_time_has_a_limit_above_it_and_is_told_in_milliseconds() -> None:
    got = judge(case(), between(0.198, 0.202, LOWER), promise(0.160, 0.125, LOWER))

    lines = str(got).splitlines()
    assert lines[1] == "  ttft_p99: regression"
    assert lines[2] == "    promised   160 ms, so at most 180 ms (12.5 % tolerance)"
    assert lines[3] == (
        "    measured   200 ms (198 ms to 202 ms), 2 restarts: +25.0 % against the promise, +11.1 % against the limit"
    )


def test_notes_stand_in_the_message_in_their_order() -> None:
    got = judge(case(), predicted(50.0), promise(100.0), ("extrapolated", "coarse"))

    assert str(got).splitlines()[-3:-1] == ["    note 1     extrapolated", "    note 2     coarse"]


def test_a_prediction_is_told_as_one_and_without_restarts() -> None:
    lines = str(verdict(predicted(50.0))).splitlines()

    assert lines[3] == "    predicted  50.00 tok/s: -50.0 % against the promise, -33.3 % against the limit"
    assert "measured" not in lines[3]


def test_a_value_without_a_promise_is_told_with_what_was_found() -> None:
    assert str(judge(case(), measured(463.1), None)).splitlines()[1:] == [
        "  output_throughput: no-baseline",
        "    measured   463.1 tok/s, 1 restart; nothing is promised for it",
        "    to do      review the value and add it to the baseline file",
    ]


@pytest.mark.parametrize(
    ("summary", "advice"),
    [
        (between(10.0, 20.0), "find the change that cost this"),
        (predicted(50.0), "measure it on the real machine before believing either"),
        (measured(100.0), "run with --restarts 3 or more"),
        (between(70.0, 80.0), "run again with more --restarts"),
        (between(90.0, 110.0), "nothing"),
    ],
)
def test_what_to_do_depends_on_why_it_did_not_pass(summary: Summary, advice: str) -> None:
    assert advice in verdict(summary).advice
    assert str(verdict(summary)).splitlines()[-1] == f"    to do      {verdict(summary).advice}"


def test_nobody_is_told_to_promise_a_prediction() -> None:
    assert judge(case(), predicted(100.0), None).advice.startswith("a prediction never becomes a promise")
