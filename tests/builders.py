"""Values for tests, with every part filled in that a test does not care about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytest_llamaperf.baselines import Baseline
from pytest_llamaperf.cases import Case
from pytest_llamaperf.catalog import case_of_key
from pytest_llamaperf.measurements import Source, Summary, summarize_values
from pytest_llamaperf.metrics import OUTPUT_THROUGHPUT, Metric
from pytest_llamaperf.records import Result, TestRecord

KEY = "tensorrt-llm/llama-3.1-8b/modelopt-fp8/tp1/max-throughput-128-128"


def case(key: str = KEY, hardware: str = "h200") -> Case:
    return case_of_key(hardware, key)


def measured(*values: float, metric: Metric = OUTPUT_THROUGHPUT) -> Summary:
    return summarize_values(metric, Source.MEASURED, values)


def predicted(value: float, metric: Metric = OUTPUT_THROUGHPUT) -> Summary:
    return summarize_values(metric, Source.PREDICTED, (value,))


def between(low: float, high: float, metric: Metric = OUTPUT_THROUGHPUT) -> Summary:
    """Two measured restarts whose interval is what the test says, whatever the formula of intervals."""
    return Summary(metric, Source.MEASURED, (low, high), (low + high) / 2, low, high)


def promise(value: float, tolerance: float = 0.25, metric: Metric = OUTPUT_THROUGHPUT) -> Baseline:
    path = Path("baselines/h200/llama-3.1-8b.yaml")
    return Baseline(case(), metric, value, tolerance, Source.PUBLISHED, "perf-overview.md", path, 7)


def result(outcome: str = "pass", source: str | None = "measured", nodeid: str = "suites/test_a.py::test_b") -> Result:
    return Result(
        nodeid, case().to_dict(), "output_throughput", "tok/s", "higher", source, (474.5, 471.0), 472.75, 461.7, 483.8,
        promise(463.1).to_dict(), outcome, "one sentence", ("a note",),
    )  # fmt: skip


def record(*results: Result, outcome: str = "passed", reason: str = "", **other: Any) -> TestRecord:
    nodeid = results[0].nodeid if results else "suites/test_a.py::test_b"
    return TestRecord(other.get("nodeid", nodeid), outcome, 1.5, reason, results)
