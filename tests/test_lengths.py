"""Lengths and arrivals: drawn, yet the same everywhere."""

from __future__ import annotations

import dataclasses
import itertools
import statistics

import pytest

from pytest_llamaperf.catalog import workload_named
from pytest_llamaperf.lengths import DISTRIBUTIONS, arrival_times, request_lengths, total_lengths


def test_constant_lengths_are_those_of_the_workload() -> None:
    workload = dataclasses.replace(workload_named("max-throughput-2048-128"), requests=3)

    assert list(request_lengths(workload)) == [(2048, 128)] * 3


def test_drawn_lengths_are_the_same_in_every_run_and_others_with_another_seed() -> None:
    workload = dataclasses.replace(workload_named("max-throughput-openorca"), requests=100)

    assert request_lengths(workload) == request_lengths(workload)
    assert request_lengths(workload) != request_lengths(workload, seed=1)
    # Written down, for a run must also repeat on another machine and under another Python.
    assert request_lengths(workload)[:2] == [(202, 250), (454, 222)]


def test_drawn_lengths_are_within_one_token_and_the_longest_and_have_the_means_they_claim() -> None:
    drawn = DISTRIBUTIONS["openorca"]
    workload = workload_named("max-throughput-openorca")

    pairs = request_lengths(workload)

    assert len(pairs) == drawn.requests == 3 * 24576
    inputs, outputs = zip(*pairs, strict=True)
    assert min(*inputs, *outputs) >= 1
    assert max(*inputs, *outputs) <= 1024
    # Standard deviation about 230 tokens: the mean of 73,728 draws is known to 230 / sqrt(73728) = 0.85 tokens.
    assert statistics.fmean(inputs) == pytest.approx(289, abs=3 * 0.85)
    assert statistics.fmean(outputs) == pytest.approx(291, abs=3 * 0.85)


def test_only_an_open_loop_has_arrival_times() -> None:
    assert arrival_times(workload_named("max-throughput-openorca")) is None
    assert arrival_times(workload_named("concurrency-64-2048-128")) is None


def test_an_open_loop_submits_in_order_at_its_rate_and_the_same_in_every_run() -> None:
    workload = dataclasses.replace(workload_named("rate-100.35-openorca"), requests=20_000)

    times = arrival_times(workload)

    assert times is not None
    assert len(times) == 20_000
    assert all(a < b for a, b in itertools.pairwise(times))
    # Not from the seed of the lengths: the first of random.Random(1) is 0.134364, and -ln(1 - 0.134364) / 100.35:
    assert times[0] == pytest.approx(0.00143788, abs=1e-8)
    # The sum of n exponential waits has a relative standard deviation of 1 / sqrt(n) = 0.7 %.
    assert times[-1] == pytest.approx(20_000 / 100.35, rel=3 * 0.007)
    # Poisson: the waits are as spread as they are long.
    waits = [b - a for a, b in itertools.pairwise(times)]
    assert statistics.stdev(waits) == pytest.approx(1 / 100.35, rel=0.05)
    assert arrival_times(workload) == times
    assert arrival_times(workload, seed=1) != times


def test_one_request_at_a_time_is_done_in_minutes_not_days_whatever_the_lengths() -> None:
    assert workload_named("min-latency-openorca").requests == workload_named("min-latency-289-291").requests


@pytest.mark.parametrize("name", ["max-throughput-2048-128", "concurrency-8-1-1", "max-throughput-openorca"])
def test_totals_are_those_of_all_requests(name: str) -> None:
    lengths, total = request_lengths(workload_named(name)), total_lengths(workload_named(name))

    assert total.requests == len(lengths)
    assert (total.input, total.output) == tuple(map(sum, zip(*lengths, strict=True)))
    assert total.longest_prompt == max(isl for isl, _ in lengths)
    assert total.longest == max(isl + osl for isl, osl in lengths)
