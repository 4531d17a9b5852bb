"""Decoding with two thirds of the embedded model's layers left out: engines open in seconds, so that many pairs can be made."""

from __future__ import annotations

import pytest

from pytest_llamaperf import OUTPUT_THROUGHPUT, TPOT_MEDIAN


@pytest.mark.cases(
    model="smollm2-135m@random@layers=6",
    recipe="bf16",
    layout="tp1",
    hardware="cpu",
    workload="min-latency-16-8",
)
def test_decode(case, measure, baseline):
    baseline.check(measure(case), OUTPUT_THROUGHPUT, TPOT_MEDIAN)
