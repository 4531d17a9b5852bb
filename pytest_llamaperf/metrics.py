"""A quantity: its name, its base unit, and which way is better.

Base units everywhere: seconds, bytes, tokens per second. Numbers are scaled for reading only where text is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pytest_llamaperf.errors import UsageError, nearest


class Better(StrEnum):
    HIGHER = "higher"
    LOWER = "lower"


@dataclass(frozen=True, order=True)
class Metric:
    """`name` is the word used in YAML, JSON and reports; `meaning` is its definition for a reader."""

    name: str
    unit: str
    better: Better
    meaning: str

    def __str__(self) -> str:
        return self.name

    @property
    def is_ratio(self) -> bool:
        return self.unit == _TIMES

    def versus(self, other: str) -> Metric:
        """How many times better than the same case with one thing replaced by `other` (unit x, higher is better)."""
        return Metric(f"{self.name} vs {other}", _TIMES, Better.HIGHER, f"times better {self.name} than with {other}")


_TIMES = "x"


def _metric(name: str, unit: str, better: Better, meaning: str) -> Metric:
    return _CATALOG.setdefault(name, Metric(name, unit, better, meaning))


_CATALOG: dict[str, Metric] = {}

OUTPUT_THROUGHPUT = _metric(
    "output_throughput",
    "tok/s",
    Better.HIGHER,
    "output tokens of all requests over the time from the first submission to the last token",
)
OUTPUT_THROUGHPUT_PER_GPU = _metric(
    "output_throughput_per_gpu", "tok/s", Better.HIGHER, "output_throughput divided by the number of GPUs"
)
OUTPUT_SPEED_PER_USER = _metric(
    "output_speed_per_user",
    "tok/s",
    Better.HIGHER,
    "mean over requests of output tokens over request latency",
)
TTFT_MEDIAN = _metric("ttft_median", "s", Better.LOWER, "time from submission to first token, median")
TTFT_P99 = _metric("ttft_p99", "s", Better.LOWER, "time from submission to first token, 99th percentile")
TPOT_MEDIAN = _metric("tpot_median", "s", Better.LOWER, "time per output token after the first, median")
TPOT_P99 = _metric("tpot_p99", "s", Better.LOWER, "time per output token after the first, 99th percentile")
REQUEST_LATENCY_MEDIAN = _metric(
    "request_latency_median", "s", Better.LOWER, "time from submission to last token, median"
)
PEAK_MEMORY = _metric("peak_memory", "B", Better.LOWER, "most memory in use on one GPU during the run")
LOAD_TIME = _metric("load_time", "s", Better.LOWER, "from starting the engine to its being ready for requests")
ACCURACY = _metric("accuracy", "fraction", Better.HIGHER, "share of right answers, 0 to 1")
PERPLEXITY = _metric("perplexity", "1", Better.LOWER, "exp of the mean negative log-likelihood per token")


def metric_named(name: str) -> Metric:
    """The metric a file or a suite names, `X vs Y` included.

    Raises UsageError with the nearest name for an unknown one.
    """
    plain, versus, other = name.partition(" vs ")
    if plain not in _CATALOG:
        raise UsageError(f"unknown metric {plain!r}; {nearest(plain, _CATALOG)}")
    if versus and not other.strip():
        raise UsageError(f"{name!r} does not say what it compares with; write {plain} vs llama-fp8, or vs pp8")
    return _CATALOG[plain].versus(other) if versus else _CATALOG[plain]


def metric_names() -> tuple[str, ...]:
    return tuple(_CATALOG)
