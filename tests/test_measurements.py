"""Values of restarts, their interval, and ratios of two cases."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest
from builders import case, measured, predicted
from hypothesis import given
from hypothesis import strategies as st

from pytest_llamaperf.cases import Case, Layout
from pytest_llamaperf.catalog import recipe_named
from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.measurements import Fingerprint, Measurement, Source, Summary, summarize_values
from pytest_llamaperf.metrics import OUTPUT_THROUGHPUT, TPOT_MEDIAN, TTFT_P99, Metric

CASE = case("tensorrt-llm/llama-3.1-405b/modelopt-fp8/tp8/min-latency-2048-128")
OFFICIAL = CASE.with_recipe(recipe_named("llama-fp8"))


def measurement(of: Case = CASE, source: Source = Source.MEASURED, **samples: tuple[float, ...]) -> Measurement:
    named: Mapping[Metric, tuple[float, ...]] = {
        OUTPUT_THROUGHPUT: samples.get("speed", ()),
        TPOT_MEDIAN: samples.get("tpot", ()),
    }
    return Measurement(of, source, {metric: values for metric, values in named.items() if values})


def test_the_interval_of_two_restarts_is_six_standard_errors_wide() -> None:
    got = measured(100.0, 104.0)

    # s = 2.8284, s / sqrt(2) = 2, t(0.95, 1) = 6.3138
    assert got.value == 102.0
    assert got.low == pytest.approx(102 - 6.3138 * 2, abs=1e-3)
    assert got.high == pytest.approx(102 + 6.3138 * 2, abs=1e-3)


def test_the_interval_of_three_restarts_is_half_as_wide() -> None:
    got = measured(97.0, 100.0, 103.0)

    # s = 3, s / sqrt(3) = 1.73205, t(0.95, 2) = 2.9200
    assert got.value == 100.0
    assert got.low == pytest.approx(100 - 2.9200 * 1.73205, abs=1e-4)
    assert got.high == pytest.approx(100 + 2.9200 * 1.73205, abs=1e-4)


def test_equal_restarts_have_an_interval_of_one_value() -> None:
    got = measured(0.1, 0.1, 0.1)

    assert (got.low, got.value, got.high) == (0.1, 0.1, 0.1)


def test_a_single_restart_has_no_interval() -> None:
    assert measured(100.0) == Summary(OUTPUT_THROUGHPUT, Source.MEASURED, (100.0,), 100.0, None, None)


@pytest.mark.parametrize("source", [Source.PREDICTED, Source.PUBLISHED])
def test_only_what_was_measured_has_an_interval(source: Source) -> None:
    got = summarize_values(OUTPUT_THROUGHPUT, source, (100.0, 104.0))

    assert (got.value, got.low, got.high) == (102.0, None, None)


@pytest.mark.parametrize("restarts", [3, 5])
def test_each_end_of_the_interval_misses_the_truth_in_one_run_of_twenty(restarts: int) -> None:
    truth, runs, source = 463.1, 2000, random.Random(20261122)

    summaries = [measured(*(source.gauss(truth, 5.0) for _ in range(restarts))) for _ in range(runs)]

    # 5 % of 2,000 with a standard error of sqrt(0.05 * 0.95 / 2000) = 0.49 %; three of them either way.
    above = sum(s.low is not None and s.low > truth for s in summaries) / runs
    below = sum(s.high is not None and s.high < truth for s in summaries) / runs
    assert above == pytest.approx(0.05, abs=3 * 0.0049)
    assert below == pytest.approx(0.05, abs=3 * 0.0049)


@given(st.lists(st.floats(1e-3, 1e6), min_size=2, max_size=8))
def test_the_value_lies_in_its_interval(values: list[float]) -> None:
    got = measured(*values)

    assert got.low is not None
    assert got.high is not None
    assert got.low <= got.value <= got.high


def test_a_metric_the_run_did_not_give_is_refused_with_those_it_gave() -> None:
    with pytest.raises(UsageError) as caught:
        measurement(speed=(50.0,), tpot=(0.02,)).of(TTFT_P99)

    assert str(caught.value) == f"{CASE.id}: this run gives no ttft_p99; it gives output_throughput, tpot_median"


def test_a_metric_without_values_was_not_given() -> None:
    with pytest.raises(UsageError, match="it gives nothing"):
        Measurement(CASE, Source.MEASURED, {}).of(OUTPUT_THROUGHPUT)
    with pytest.raises(UsageError, match="gives no output_throughput"):
        Measurement(CASE, Source.MEASURED, {OUTPUT_THROUGHPUT: ()}).of(OUTPUT_THROUGHPUT)


def test_a_ratio_pairs_restarts_in_their_order() -> None:
    ours = measurement(speed=(50.0, 60.0, 70.0))
    theirs = measurement(OFFICIAL, speed=(40.0, 30.0, 35.0))

    ratio = ours.versus(theirs, OUTPUT_THROUGHPUT)

    # Means of unpaired values would give 60 / 35 = 1.71; and sorted ones 1.67, 1.71, 1.75.
    assert ratio.samples == {OUTPUT_THROUGHPUT.versus("llama-fp8"): (1.25, 2.0, 2.0)}
    assert ratio.case == CASE
    assert ratio.source is Source.MEASURED


def test_a_ratio_of_a_metric_that_should_be_low_still_says_times_better() -> None:
    ratio = measurement(tpot=(0.02,)).versus(measurement(OFFICIAL, tpot=(0.03,)), TPOT_MEDIAN)

    assert ratio.of(TPOT_MEDIAN.versus("llama-fp8")).value == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("other", "name"),
    [
        (CASE.with_layout(Layout(pp=8)), "pp8"),
        (OFFICIAL, "llama-fp8"),
        (case("trtllm-bench/llama-3.1-405b/modelopt-fp8/tp8/min-latency-2048-128"), "trtllm-bench"),
        (case("tensorrt-llm/llama-3.1-405b/modelopt-fp8/tp8/min-latency-2048-128", "h100"), "h100"),
    ],
)
def test_a_ratio_is_named_by_the_one_thing_that_differs(other: Case, name: str) -> None:
    ratio = measurement(speed=(50.0,)).versus(measurement(other, speed=(25.0,)), OUTPUT_THROUGHPUT)

    assert list(ratio.samples) == [OUTPUT_THROUGHPUT.versus(name)]


@pytest.mark.parametrize("other", [CASE, OFFICIAL.with_layout(Layout(pp=8))])
def test_cases_that_differ_in_nothing_or_in_two_things_make_no_ratio(other: Case) -> None:
    with pytest.raises(UsageError) as caught:
        measurement(speed=(50.0,)).versus(measurement(other, speed=(25.0,)), OUTPUT_THROUGHPUT)

    assert str(caught.value) == f"a ratio compares cases that differ in one thing; {CASE} and {other} do not"


def test_a_measurement_is_never_divided_by_a_prediction() -> None:
    with pytest.raises(UsageError) as caught:
        measurement(speed=(50.0,)).versus(measurement(OFFICIAL, Source.PREDICTED, speed=(25.0,)), OUTPUT_THROUGHPUT)

    assert str(caught.value) == f"{CASE} is measured, {OFFICIAL} is predicted: these never mix"


def test_a_ratio_of_predictions_is_a_prediction() -> None:
    ours, theirs = (measurement(of, Source.PREDICTED, speed=(50.0,)) for of in (CASE, OFFICIAL))

    assert ours.versus(theirs, OUTPUT_THROUGHPUT).source is Source.PREDICTED


def test_different_numbers_of_restarts_cannot_be_paired() -> None:
    with pytest.raises(UsageError) as caught:
        measurement(speed=(50.0, 51.0)).versus(measurement(OFFICIAL, speed=(25.0,)), OUTPUT_THROUGHPUT)

    assert str(caught.value) == f"{CASE} has 2 restarts, {OFFICIAL} has 1: nothing to pair"


def test_a_ratio_needs_the_metric_on_both_sides() -> None:
    with pytest.raises(UsageError, match=f"{OFFICIAL.id}: this run gives no output_throughput"):
        measurement(speed=(50.0,)).versus(measurement(OFFICIAL, tpot=(0.02,)), OUTPUT_THROUGHPUT)


def test_a_ratio_keeps_our_fingerprint_and_the_notes_of_both_once() -> None:
    fingerprint = Fingerprint({"tensorrt_llm": "1.2.1"}, {"max_batch_size": 64})
    samples = {OUTPUT_THROUGHPUT: (50.0,)}
    ours = Measurement(CASE, Source.MEASURED, samples, fingerprint, ("extrapolated", "ours"))
    theirs = Measurement(
        OFFICIAL, Source.MEASURED, samples, Fingerprint({"tensorrt_llm": "1.2.1"}), ("theirs", "extrapolated")
    )

    ratio = ours.versus(theirs, OUTPUT_THROUGHPUT)

    assert ratio.fingerprint == fingerprint
    assert ratio.notes == ("extrapolated", "ours", "theirs")


def test_two_versions_are_no_two_recipes() -> None:
    samples = {OUTPUT_THROUGHPUT: (50.0,)}
    ours = Measurement(CASE, Source.MEASURED, samples, Fingerprint({"tensorrt_llm": "1.2.1"}))
    theirs = Measurement(OFFICIAL, Source.MEASURED, samples, Fingerprint({"tensorrt_llm": "1.1.0"}))

    with pytest.raises(UsageError, match=r"were run with different versions \(tensorrt_llm 1\.2\.1 and 1\.1\.0\)"):
        ours.versus(theirs, OUTPUT_THROUGHPUT)


def test_an_engine_that_knows_of_fewer_libraries_can_be_compared_with() -> None:
    samples = {OUTPUT_THROUGHPUT: (50.0,)}
    ours = Measurement(CASE, Source.MEASURED, samples, Fingerprint({"tensorrt_llm": "1.2.1", "nccl": "2.27.3"}))
    theirs = Measurement(OFFICIAL, Source.MEASURED, samples, Fingerprint({"tensorrt_llm": "1.2.1"}))

    assert ours.versus(theirs, OUTPUT_THROUGHPUT).source is Source.MEASURED


@given(st.lists(st.tuples(st.floats(0.01, 1e4), st.floats(0.01, 1e4)), min_size=1, max_size=5))
def test_a_ratio_turned_around_is_its_reciprocal(pairs: list[tuple[float, float]]) -> None:
    ours = measurement(speed=tuple(a for a, _ in pairs))
    theirs = measurement(OFFICIAL, speed=tuple(b for _, b in pairs))

    (forth,) = ours.versus(theirs, OUTPUT_THROUGHPUT).samples.values()
    (back,) = theirs.versus(ours, OUTPUT_THROUGHPUT).samples.values()

    assert forth == pytest.approx([1 / ratio for ratio in back])


def test_a_prediction_keeps_its_value_and_says_what_it_is() -> None:
    assert predicted(474.5) == Summary(OUTPUT_THROUGHPUT, Source.PREDICTED, (474.5,), 474.5, None, None)


def test_a_fingerprint_becomes_plain_values() -> None:
    assert Fingerprint({"torch": "2.9"}, {"chunked_prefill": True}).to_dict() == {
        "versions": {"torch": "2.9"},
        "settings": {"chunked_prefill": True},
    }
