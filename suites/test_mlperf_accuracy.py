"""MLPerf Inference, Llama 2 70B: are the answers to OpenOrca as good as its closed division asks of llama2-70b-99.9?

Its 24,576 documents are MLCommons' to give: docs/mlperf-accuracy.md says how to get them, and LLAMAPERF_OPENORCA names their
file. The targets stand in pytest_llamaperf/catalog/targets.yaml.
"""

import pytest


# MLPerf runs eight copies of an engine of one GPU, dp8; one engine that is asked for answers has no copies.
@pytest.mark.accuracy
@pytest.mark.cases(model="llama-2-70b", recipe="modelopt-fp8", layout="tp8", task="openorca", hardware="h200")
def test_mlperf_accuracy(case, evaluate, accuracy):
    accuracy.reaches(evaluate(case))
