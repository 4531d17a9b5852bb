"""Clock readings of requests, and what they amount to.

One place computes the metrics of every engine and of the predictor, with the definitions of `trtllm-bench`
(its reporting module, TensorRT-LLM 1.2), so that our figures and NVIDIA's can be laid side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_llamaperf import metrics
from pytest_llamaperf.metrics import Metric


@dataclass(frozen=True, slots=True)
class Trace:
    """One request: times in seconds on one steady clock, lengths in tokens.

    `submitted` is when the request was handed to the engine, queueing included in what follows.
    """

    submitted: float
    first_token: float
    last_token: float
    input_tokens: int
    output_tokens: int

    def __post_init__(self) -> None:
        if not self.submitted < self.first_token <= self.last_token:
            raise ValueError(f"clock readings out of order: {self}")
        if self.input_tokens < 1 or self.output_tokens < 1:
            raise ValueError(f"a request has at least one token in and one out: {self}")

    @property
    def ttft(self) -> float:
        """Time to first token, seconds."""
        return self.first_token - self.submitted

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first, seconds; None for a request of one output token."""
        if self.output_tokens == 1:
            return None
        return (self.last_token - self.first_token) / (self.output_tokens - 1)

    @property
    def latency(self) -> float:
        """Submission to last token, seconds."""
        return self.last_token - self.submitted


def percentile(values: Sequence[float], share: float) -> float:
    """The value at rank floor(n * share) of the sorted values, counted from 0; no interpolation.

    This is trtllm-bench's rule. The median of an even number is therefore the upper middle value, and with
    at most 100 values the 99th percentile is the maximum. Raises ValueError on no values.
    """
    if not values:
        raise ValueError("no values to take a percentile of")
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def summarize(traces: Sequence[Trace], gpus: int) -> Mapping[Metric, float]:
    """Every metric that clock readings of one run can give; TPOT is absent where no request has two tokens.

    `gpus` is how many GPUs served the run (1 for a CPU). Raises ValueError on no traces.
    """
    if not traces:
        raise ValueError("a run without a finished request has no metrics")
    elapsed = max(t.last_token for t in traces) - min(t.submitted for t in traces)
    throughput = sum(t.output_tokens for t in traces) / elapsed
    values = {
        metrics.OUTPUT_THROUGHPUT: throughput,
        metrics.OUTPUT_THROUGHPUT_PER_GPU: throughput / gpus,
        metrics.OUTPUT_SPEED_PER_USER: sum(t.output_tokens / t.latency for t in traces) / len(traces),
    }
    values |= _percentiles([t.ttft for t in traces], {metrics.TTFT_MEDIAN: 0.5, metrics.TTFT_P99: 0.99})
    values |= _percentiles([t.latency for t in traces], {metrics.REQUEST_LATENCY_MEDIAN: 0.5})
    tpots = [tpot for t in traces if (tpot := t.tpot) is not None]
    if tpots:
        values |= _percentiles(tpots, {metrics.TPOT_MEDIAN: 0.5, metrics.TPOT_P99: 0.99})
    return values


def _percentiles(values: Sequence[float], shares: Mapping[Metric, float]) -> dict[Metric, float]:
    return {metric: percentile(values, share) for metric, share in shares.items()}
