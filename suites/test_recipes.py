"""Is ModelOpt FP8 as much faster than the official Llama FP8 recipe as published, both measured in this run?"""

import pytest

from pytest_llamaperf import OUTPUT_THROUGHPUT

LENGTHS = [f"{scenario}-{lengths}" for scenario in ("max-throughput", "min-latency")
           for lengths in ("2048-128", "32768-2048", "120000-2048")]  # fmt: skip


@pytest.mark.cases(model="llama-3.1-405b", recipe="modelopt-fp8", layout="tp8", workload=LENGTHS)
@pytest.mark.versus(recipe="llama-fp8")
def test_modelopt_fp8_beats_llama_fp8(case, other, measure, baseline):
    modelopt, official = measure(case), measure(other)

    baseline.check(modelopt.versus(official, OUTPUT_THROUGHPUT), OUTPUT_THROUGHPUT.versus("llama-fp8"))
