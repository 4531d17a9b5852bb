"""Does each way to spread a model over GPUs win where it should? Both are measured in this run."""

import pytest

from pytest_llamaperf import OUTPUT_THROUGHPUT


@pytest.mark.cases(
    model="llama-3.1-405b", recipe="modelopt-fp8", layout="tp8", workload="min-latency-2048-128", hardware="h200"
)
@pytest.mark.versus(layout="pp8")
def test_tensor_parallelism_wins_at_minimum_latency(case, other, measure, baseline):
    tensor, pipeline = measure(case), measure(other)

    baseline.check(tensor.versus(pipeline, OUTPUT_THROUGHPUT), OUTPUT_THROUGHPUT.versus("pp8"))


@pytest.mark.cases(
    model="llama-3.1-405b", recipe="modelopt-fp8", layout="pp8", workload="max-throughput-2048-128", hardware="h200"
)
@pytest.mark.versus(layout="tp8")
def test_pipeline_parallelism_wins_at_maximum_throughput(case, other, measure, baseline):
    pipeline, tensor = measure(case), measure(other)

    baseline.check(pipeline.versus(tensor, OUTPUT_THROUGHPUT), OUTPUT_THROUGHPUT.versus("tp8"))
