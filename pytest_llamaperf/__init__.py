"""What the author of a suite imports."""

from pytest_llamaperf.cases import Case, Layout, Model, Recipe, Task, Workload
from pytest_llamaperf.catalog import model_named, recipe_named, workload_named
from pytest_llamaperf.measurements import Measurement, Source
from pytest_llamaperf.metrics import (
    ACCURACY,
    LOAD_TIME,
    OUTPUT_SPEED_PER_USER,
    OUTPUT_THROUGHPUT,
    OUTPUT_THROUGHPUT_PER_GPU,
    PEAK_MEMORY,
    PERPLEXITY,
    REQUEST_LATENCY_MEDIAN,
    TPOT_MEDIAN,
    TPOT_P99,
    TTFT_MEDIAN,
    TTFT_P99,
    Metric,
)

__all__ = [
    "ACCURACY",
    "LOAD_TIME",
    "OUTPUT_SPEED_PER_USER",
    "OUTPUT_THROUGHPUT",
    "OUTPUT_THROUGHPUT_PER_GPU",
    "PEAK_MEMORY",
    "PERPLEXITY",
    "REQUEST_LATENCY_MEDIAN",
    "TPOT_MEDIAN",
    "TPOT_P99",
    "TTFT_MEDIAN",
    "TTFT_P99",
    "Case",
    "Layout",
    "Measurement",
    "Metric",
    "Model",
    "Recipe",
    "Source",
    "Task",
    "Workload",
    "model_named",
    "recipe_named",
    "workload_named",
]
