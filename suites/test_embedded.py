"""The embedded model on any CPU: how fast it is, and what recipes and layouts make of it, each measured in this run.

A CPU makes no claim about a GPU. What holds on both is the way from a checkpoint to a verdict, and that is run for real.
Nine heads go into two ranks unevenly, which the torch engine alone can do.
"""

import pytest

from pytest_llamaperf import OUTPUT_THROUGHPUT, REQUEST_LATENCY_MEDIAN, TPOT_MEDIAN, TTFT_MEDIAN

EMBEDDED = {"model": "smollm2-135m", "hardware": "cpu"}
ALL_AT_ONCE, ONE_BY_ONE, FOUR_USERS = "max-throughput-16-8", "min-latency-16-8", "concurrency-4-16-8"


@pytest.mark.cases(**EMBEDDED, recipe=["bf16", "modelopt-fp8", "llama-fp8"], layout="tp1", workload=ALL_AT_ONCE)
@pytest.mark.cases(**EMBEDDED, recipe="bf16", layout="tp2", workload=ALL_AT_ONCE, engine="torch")
@pytest.mark.cases(**EMBEDDED, recipe="bf16", layout="pp2", workload=ALL_AT_ONCE)
def test_throughput(case, measure, baseline):
    run = measure(case)

    baseline.check(run, OUTPUT_THROUGHPUT)


@pytest.mark.cases(**EMBEDDED, recipe=["bf16", "modelopt-fp8"], layout="tp1", workload=ONE_BY_ONE)
@pytest.mark.cases(**EMBEDDED, recipe="bf16", layout="tp1", workload=FOUR_USERS)
def test_latency(case, measure, baseline):
    run = measure(case)

    baseline.check(run, TTFT_MEDIAN, TPOT_MEDIAN, REQUEST_LATENCY_MEDIAN)


@pytest.mark.cases(**EMBEDDED, recipe=["modelopt-fp8", "llama-fp8"], layout="tp1", workload=ALL_AT_ONCE)
@pytest.mark.versus(recipe="bf16")
def test_a_recipe_costs_no_more_than_it_did(case, other, measure, baseline):
    quantized, reference = measure(case), measure(other)

    baseline.check(quantized.versus(reference, OUTPUT_THROUGHPUT), OUTPUT_THROUGHPUT.versus("bf16"))


@pytest.mark.cases(**EMBEDDED, recipe="bf16", layout="pp2", workload=ALL_AT_ONCE, engine="torch")
@pytest.mark.versus(layout="tp2")
def test_pipeline_against_tensor_parallelism(case, other, measure, baseline):
    pipeline, tensor = measure(case), measure(other)

    baseline.check(pipeline.versus(tensor, OUTPUT_THROUGHPUT), OUTPUT_THROUGHPUT.versus("tp2"))
