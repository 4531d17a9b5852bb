"""Names, units and directions of metrics."""

from __future__ import annotations

import pytest

from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.metrics import (
    ACCURACY,
    OUTPUT_THROUGHPUT,
    OUTPUT_THROUGHPUT_PER_GPU,
    TTFT_P99,
    Better,
    Metric,
    metric_named,
    metric_names,
)


@pytest.mark.parametrize(
    ("name", "unit", "better"),
    [
        ("output_throughput", "tok/s", "higher"),
        ("output_throughput_per_gpu", "tok/s", "higher"),
        ("output_speed_per_user", "tok/s", "higher"),
        ("ttft_median", "s", "lower"),
        ("ttft_p99", "s", "lower"),
        ("tpot_median", "s", "lower"),
        ("tpot_p99", "s", "lower"),
        ("request_latency_median", "s", "lower"),
        ("peak_memory", "B", "lower"),
        ("load_time", "s", "lower"),
        ("accuracy", "fraction", "higher"),
        ("perplexity", "1", "lower"),
    ],
)
def test_a_metric_knows_its_base_unit_and_its_better_direction(name: str, unit: str, better: str) -> None:
    metric = metric_named(name)

    assert (metric.name, metric.unit, metric.better.value) == (name, unit, better)


def test_every_name_finds_the_metric_of_that_name() -> None:
    assert tuple(metric_named(name).name for name in metric_names()) == metric_names()
    assert len(set(metric_names())) == 12


def test_a_metric_prints_as_its_name() -> None:
    assert str(TTFT_P99) == "ttft_p99"


@pytest.mark.parametrize("metric", [OUTPUT_THROUGHPUT, TTFT_P99, ACCURACY])
def test_a_ratio_counts_times_better_whatever_the_direction_of_its_metric(metric: Metric) -> None:
    ratio = metric.versus("llama-fp8")

    assert (ratio.name, ratio.unit, ratio.better) == (f"{metric.name} vs llama-fp8", "x", Better.HIGHER)


def test_a_ratio_is_found_by_the_name_it_prints() -> None:
    assert metric_named("output_throughput vs llama-fp8") == OUTPUT_THROUGHPUT.versus("llama-fp8")
    assert metric_named("output_throughput vs llama-fp8") != metric_named("output_throughput vs pp8")
    assert metric_named("output_throughput_per_gpu vs tp8") == OUTPUT_THROUGHPUT_PER_GPU.versus("tp8")


@pytest.mark.parametrize("name", ["output_troughput", "output_troughput vs tp8"])
def test_an_unknown_name_is_answered_with_the_nearest_one(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        metric_named(name)

    assert str(caught.value).startswith(
        "unknown metric 'output_troughput'; did you mean 'output_throughput'? known: accuracy, load_time, "
    )


def test_a_name_near_to_nothing_is_answered_with_all_names_and_no_guess() -> None:
    with pytest.raises(UsageError) as caught:
        metric_named("zzz")

    assert "did you mean" not in str(caught.value)
    assert all(name in str(caught.value) for name in metric_names())


def test_a_ratio_to_nothing_is_refused_rather_than_read_as_the_plain_metric() -> None:
    with pytest.raises(UsageError):
        metric_named("output_throughput vs ")
