"""From clock readings to metrics, with trtllm-bench's definitions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llamaperf.metrics import (
    OUTPUT_SPEED_PER_USER,
    OUTPUT_THROUGHPUT,
    OUTPUT_THROUGHPUT_PER_GPU,
    REQUEST_LATENCY_MEDIAN,
    TPOT_MEDIAN,
    TPOT_P99,
    TTFT_MEDIAN,
    TTFT_P99,
    Metric,
)
from pytest_llamaperf.traces import Trace, percentile, summarize

# Whole seconds: differences and multiples of them are exact, so that the tests need little slack.
SECONDS = st.integers(1, 100_000)


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    submitted, wait, decode = draw(st.integers(0, 100_000)), draw(SECONDS), draw(st.integers(0, 100_000))
    first = submitted + wait
    return Trace(submitted, first, first + decode, draw(st.integers(1, 4096)), draw(st.integers(1, 4096)))


def scaled(trace: Trace, k: int) -> Trace:
    return Trace(
        trace.submitted * k, trace.first_token * k, trace.last_token * k, trace.input_tokens, trace.output_tokens
    )


def near(values: Mapping[Metric, float]) -> object:
    return pytest.approx(dict(values), rel=1e-12)


def test_metrics_of_three_requests_are_as_worked_out_by_hand() -> None:
    requests = [
        # from, first, last; tokens in, out       TTFT  latency  TPOT              tokens / latency
        Trace(10.0, 12.0, 16.0, 100, 5),  #       2     6        4 / (5-1) = 1     5/6
        Trace(11.0, 12.0, 20.0, 100, 17),  #      1     9        8 / (17-1) = 0.5  17/9
        Trace(12.0, 17.0, 18.0, 100, 3),  #       5     6        1 / (3-1) = 0.5   3/6
    ]

    got = summarize(requests, gpus=2)

    assert dict(got) == near(
        {
            OUTPUT_THROUGHPUT: 2.5,  # (5 + 17 + 3) tokens / (20 - 10) s
            OUTPUT_THROUGHPUT_PER_GPU: 1.25,
            OUTPUT_SPEED_PER_USER: (5 / 6 + 17 / 9 + 3 / 6) / 3,
            TTFT_MEDIAN: 2.0,  # of 1, 2, 5
            TTFT_P99: 5.0,
            REQUEST_LATENCY_MEDIAN: 6.0,  # of 6, 6, 9
            TPOT_MEDIAN: 0.5,  # of 0.5, 0.5, 1
            TPOT_P99: 1.0,
        }
    )


def test_requests_of_one_output_token_have_no_tpot_and_do_not_enter_it() -> None:
    one = Trace(0.0, 1.0, 1.0, 10, 1)
    two = Trace(0.0, 1.0, 4.0, 10, 2)

    assert one.tpot is None
    assert summarize([one, one, two], gpus=1)[TPOT_MEDIAN] == 3.0
    assert not {TPOT_MEDIAN, TPOT_P99} & summarize([one, one], gpus=1).keys()


def test_a_run_without_a_finished_request_has_no_metrics() -> None:
    with pytest.raises(ValueError, match="without a finished request"):
        summarize([], gpus=1)


@pytest.mark.parametrize(
    ("submitted", "first", "last"),
    [(1.0, 1.0, 2.0), (2.0, 1.0, 3.0), (0.0, 2.0, 1.0), (0.0, float("nan"), 1.0), (float("nan"), 1.0, 1.0)],
)
def test_clock_readings_out_of_order_are_refused(submitted: float, first: float, last: float) -> None:
    with pytest.raises(ValueError, match="out of order"):
        Trace(submitted, first, last, 10, 10)


def test_the_first_token_may_be_the_last() -> None:
    assert Trace(0.0, 1.0, 1.0, 10, 1).latency == 1.0


@pytest.mark.parametrize(("tokens_in", "tokens_out"), [(0, 1), (1, 0), (-1, 1)])
def test_a_request_without_tokens_is_refused(tokens_in: int, tokens_out: int) -> None:
    with pytest.raises(ValueError, match="at least one token in and one out"):
        Trace(0.0, 1.0, 2.0, tokens_in, tokens_out)


@pytest.mark.parametrize(
    ("count", "share", "rank"),
    [
        (1, 0.5, 1),
        (2, 0.5, 2),  # the upper middle of an even number
        (3, 0.5, 2),
        (4, 0.5, 3),
        (1, 0.99, 1),
        (99, 0.99, 99),  # floor(98.01) = 98, counted from 0: the maximum
        (100, 0.99, 100),  # floor(99.0) = 99: still the maximum
        (101, 0.99, 100),  # floor(99.99) = 99: the second largest
        (200, 0.99, 199),
        (5, 0.0, 1),
        (5, 1.0, 5),
    ],
)
def test_a_percentile_is_the_value_at_rank_floor_of_count_times_share(count: int, share: float, rank: int) -> None:
    values = [float(n) for n in range(1, count + 1)]
    Random(0).shuffle(values)

    assert percentile(values, share) == rank


def test_a_percentile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


@given(st.lists(st.floats(-1e9, 1e9), min_size=1), st.floats(0, 1))
def test_a_percentile_is_one_of_the_values(values: Sequence[float], share: float) -> None:
    assert percentile(values, share) in values


@given(st.lists(traces(), min_size=1, max_size=30), st.integers(2, 1000))
def test_k_times_slower_clocks_give_k_times_the_times_and_a_kth_of_the_speeds(
    requests: Sequence[Trace], k: int
) -> None:
    before = summarize(requests, gpus=1)

    after = summarize([scaled(trace, k) for trace in requests], gpus=1)

    assert dict(after) == near({m: value / k if m.unit == "tok/s" else value * k for m, value in before.items()})


@given(st.lists(traces(), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_the_order_of_the_requests_does_not_matter(requests: Sequence[Trace], source: Random) -> None:
    shuffled = source.sample(requests, len(requests))

    assert dict(summarize(shuffled, gpus=1)) == near(summarize(requests, gpus=1))


@given(st.lists(traces(), min_size=1, max_size=30), st.integers(1, 64))
def test_the_number_of_gpus_divides_the_throughput_and_changes_nothing_else(
    requests: Sequence[Trace], gpus: int
) -> None:
    on_one, on_many = dict(summarize(requests, gpus=1)), dict(summarize(requests, gpus=gpus))

    assert on_many.pop(OUTPUT_THROUGHPUT_PER_GPU) == on_many[OUTPUT_THROUGHPUT] / gpus
    assert on_one.pop(OUTPUT_THROUGHPUT_PER_GPU) == on_one[OUTPUT_THROUGHPUT]
    assert on_many == on_one


@given(st.lists(traces(), min_size=1, max_size=30))
def test_medians_never_exceed_99th_percentiles(requests: Sequence[Trace]) -> None:
    got = summarize(requests, gpus=1)

    assert got[TTFT_MEDIAN] <= got[TTFT_P99]
    assert got.get(TPOT_MEDIAN, 0.0) <= got.get(TPOT_P99, 0.0)
    assert got[TTFT_MEDIAN] <= got[REQUEST_LATENCY_MEDIAN]
