"""Does each way to spread a model over GPUs win where it should? Both are measured in this run."""

import pytest

from pytest_llamaperf import OUTPUT_THROUGHPUT, Layout


@pytest.mark.cases(
    model="llama-3.1-405b", recipe="modelopt-fp8", layout="tp8", workload="min-latency-2048-128", hardware="h200"
)
def test_tensor_parallelism_wins_at_minimum_latency(case, measure, baseline):
    tensor = measure(case)
    pipeline = measure(case.with_layout(Layout(pp=8)))

    baseline.check(tensor.versus(pipeline, OUTPUT_THROUGHPUT), OUTPUT_THROUGHPUT.versus("pp8"))


@pytest.mark.cases(
    model="llama-3.1-405b", recipe="modelopt-fp8", layout="pp8", workload="max-throughput-2048-128", hardware="h200"
)
def test_pipeline_parallelism_wins_at_maximum_throughput(case, measure, baseline):
    pipeline = measure(case)
    tensor = measure(case.with_layout(Layout(tp=8)))

    baseline.check(pipeline.versus(tensor, OUTPUT_THROUGHPUT), OUTPUT_THROUGHPUT.versus("tp8"))
