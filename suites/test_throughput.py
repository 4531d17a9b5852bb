"""Is maximum throughput what was promised? All requests at once, as trtllm-bench measures it."""

import pytest

from pytest_llamaperf import OUTPUT_THROUGHPUT

LENGTHS = ["max-throughput-2048-128", "max-throughput-32768-2048", "max-throughput-120000-2048"]


@pytest.mark.cases(model="llama-3.1-405b", recipe=["modelopt-fp8", "llama-fp8"], layout="tp8", workload=LENGTHS)
@pytest.mark.promised(metric="output_throughput", model="llama-3*", workload="max-throughput-*")
def test_max_throughput(case, measure, baseline):
    run = measure(case)

    baseline.check(run, OUTPUT_THROUGHPUT)
