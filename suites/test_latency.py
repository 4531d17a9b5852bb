"""Is minimum latency what was promised? One request at a time; output tokens per second of that request."""

import pytest

from pytest_llamaperf import OUTPUT_THROUGHPUT

LENGTHS = ["min-latency-2048-128", "min-latency-32768-2048", "min-latency-120000-2048"]


@pytest.mark.cases(model="llama-3.1-405b", recipe=["modelopt-fp8", "llama-fp8"], layout="tp8", workload=LENGTHS)
@pytest.mark.promised(metric="output_throughput", model="llama-3*", workload="min-latency-*")
def test_min_latency(case, measure, baseline):
    run = measure(case)

    baseline.check(run, OUTPUT_THROUGHPUT)
