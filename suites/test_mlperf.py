"""MLPerf Inference v4.1, Llama 2 70B on one node of eight GPUs: offline, server, and what pipeline parallelism adds."""

import pytest

from pytest_llamaperf import OUTPUT_THROUGHPUT, TPOT_P99, TTFT_P99, Layout

FP8 = {"model": "llama-2-70b", "recipe": "modelopt-fp8"}


@pytest.mark.cases(**FP8, layout="dp8", workload="max-throughput-openorca", hardware="h200")
@pytest.mark.cases(**FP8, layout=["tp2-dp4", "pp8"], workload="max-throughput-openorca", hardware="h100")
def test_mlperf_offline(case, measure, baseline):
    run = measure(case)

    baseline.check(run, OUTPUT_THROUGHPUT)


@pytest.mark.cases(**FP8, layout="dp8", workload="rate-100.35-openorca", hardware="h200")
def test_mlperf_server_keeps_its_latency_limits(case, measure, baseline):
    run = measure(case)

    baseline.check(run, OUTPUT_THROUGHPUT, TTFT_P99, TPOT_P99)


@pytest.mark.cases(**FP8, layout="pp8", workload="max-throughput-openorca", hardware="h100")
def test_pipeline_parallelism_adds_a_fifth_to_mlperf_offline(case, measure, baseline):
    pipeline = measure(case)
    tensor = measure(case.with_layout(Layout(tp=2, dp=4)))

    baseline.check(pipeline.versus(tensor, OUTPUT_THROUGHPUT), OUTPUT_THROUGHPUT.versus("tp2-dp4"))
