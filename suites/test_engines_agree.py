"""Do our clock and NVIDIA's own tool say the same of one case? Where they do not, one of the two adapters is wrong.

The LLM API is timed by us, trtllm-bench times itself; model, limits, requests and definitions are the same.
"""

import pytest

from pytest_llamaperf import OUTPUT_THROUGHPUT, Source

THEIRS = "trtllm-bench"


@pytest.mark.cases(
    model="smollm2-135m", recipe="bf16", layout="tp1", workload="max-throughput-16-8", hardware="cpu",
    engine="tensorrt-llm",
)  # fmt: skip
@pytest.mark.cases(
    model="llama-3.1-8b", recipe="modelopt-fp8", layout="tp1", workload="max-throughput-2048-128", engine="tensorrt-llm"
)
@pytest.mark.versus(engine=THEIRS)
def test_trtllm_bench_agrees_with_our_clock(case, other, measure, baseline):
    ours = measure(case)
    if ours.source is Source.PREDICTED:
        pytest.skip("a prediction has one clock")

    ratio = ours.versus(measure(other), OUTPUT_THROUGHPUT)

    # On a CPU a run lasts less than a second, and whatever else the machine does counts double.
    apart = 2.0 if case.hardware == "cpu" else 1.15
    assert 1 / apart < ratio.of(OUTPUT_THROUGHPUT.versus(THEIRS)).value < apart
    baseline.check(ratio, OUTPUT_THROUGHPUT.versus(THEIRS))
