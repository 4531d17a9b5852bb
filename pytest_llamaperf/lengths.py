"""How long the requests of a workload are: the same lengths for every engine, every run, every machine."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_llamaperf.cases import Workload


@dataclass(frozen=True)
class Distribution:
    """Log-normal lengths in tokens, cut off at `longest`; isl and osl are the means that result.

    `mu` and `sigma` are of the logarithm, found so that the mean after the cut is the published one.
    """

    isl: int
    osl: int
    input_log: tuple[float, float]
    output_log: tuple[float, float]
    longest: int
    requests: int
    note: str


# MLPerf Inference v4.1, Llama 2 70B: 24,576 samples of OpenOrca, at most 1024 tokens in and out. The mean output is
# 31,302.7 tok/s over 107.477 samples/s = 291.3 tokens (NVIDIA's 8xH200 offline log). The mean input and the spread
# are not in the logs; they are an assumption, and results say so.
DISTRIBUTIONS = {
    "openorca": Distribution(
        isl=289,
        osl=291,
        input_log=(5.475, 0.92),
        output_log=(5.488, 0.92),
        longest=1024,
        requests=3 * 24576,
        note="lengths are log-normal with OpenOrca's mean output; not the OpenOrca samples themselves",
    )
}


def request_lengths(workload: Workload, seed: int = 0) -> Sequence[tuple[int, int]]:
    """(input tokens, output tokens) of every request, in the order of submission."""
    if workload.lengths == "constant":
        return [(workload.isl, workload.osl)] * workload.requests
    drawn = DISTRIBUTIONS[workload.lengths]
    source = random.Random(seed)

    def length(mu: float, sigma: float) -> int:
        while True:
            tokens = math.ceil(source.lognormvariate(mu, sigma))
            if tokens <= drawn.longest:
                return tokens

    return [(length(*drawn.input_log), length(*drawn.output_log)) for _ in range(workload.requests)]


@dataclass(frozen=True)
class Totals:
    """Tokens of all requests of a workload together, and of the longest prompt and the longest request."""

    requests: int
    input: int
    output: int
    longest_prompt: int
    longest: int


@functools.lru_cache(maxsize=64)
def total_lengths(workload: Workload) -> Totals:
    """What `request_lengths` comes to, without listing thousands of requests that are alike."""
    if workload.lengths == "constant":
        isl, osl, requests = workload.isl, workload.osl, workload.requests
        return Totals(requests, requests * isl, requests * osl, isl, isl + osl)
    lengths = request_lengths(workload)
    return Totals(
        len(lengths),
        sum(isl for isl, _ in lengths),
        sum(osl for _, osl in lengths),
        max(isl for isl, _ in lengths),
        max(isl + osl for isl, osl in lengths),
    )


def arrival_times(workload: Workload, seed: int = 0) -> Sequence[float] | None:
    """Seconds from the start at which an open loop submits each request (Poisson); None for the other scenarios."""
    if workload.arrival_rate is None:
        return None
    source = random.Random(seed + 1)
    times, now = [], 0.0
    for _ in range(workload.requests):
        now += source.expovariate(workload.arrival_rate)
        times.append(now)
    return times
