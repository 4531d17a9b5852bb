"""In-flight batching in virtual time: which requests share which iteration, and when each token appears.

A model of TensorRT-LLM's scheduler with the policy guaranteed_no_evict: requests are admitted in order of arrival
while batch size, token budget and KV cache allow, the cache for input and output of a request is reserved when it is
admitted, and every iteration carries all decoding sequences beside the prompts that fit. How long an iteration takes
is asked of `StepCosts`; nothing else here knows about GPUs.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pytest_llamaperf.errors import DoesNotFit
from pytest_llamaperf.limits import Limits
from pytest_llamaperf.predicting.calibration import UNCALIBRATED, Calibration
from pytest_llamaperf.traces import Trace

# Decode iterations simulated at once while no request joins or leaves. The cost of attention grows in proportion to
# the cache, so the middle of the stretch stands for all of it.
STRIDE = 16


class StepCosts(Protocol):
    """Seconds of the parts of one iteration; see `operators.OperatorTimes`, which has these."""

    def decode(self, batch: int, kv: int) -> float: ...
    def shared(self, prompt_tokens: int, batch: int, joining: int) -> float: ...
    def prompt_attention(self, prompts: int, tokens: int) -> float: ...
    def decode_attention(self, batch: int, kv: int) -> float: ...


@dataclass(frozen=True)
class Request:
    """arrival in seconds of virtual time; None: as soon as the concurrency lets it be submitted."""

    input_tokens: int
    output_tokens: int
    arrival: float | None = None

    @property
    def tokens(self) -> int:
        """What its KV cache holds at the end."""
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True)
class Schedule:
    """Outcome of a simulation: a trace for each request in order, and what the engine was busy with.

    mean_batch is the mean over time of the sequences in an iteration; mean_kv the mean tokens each held while
    decoding; peak_cached the most tokens all held at once; iterations counts steps of the engine.
    """

    traces: tuple[Trace, ...]
    iterations: int
    mean_batch: float
    peak_batch: int
    mean_kv: float
    peak_cached: int


def simulate(
    costs: StepCosts,
    requests: Sequence[Request],
    limits: Limits,
    *,
    kv_tokens: int,
    concurrency: int | None = None,
    calibration: Calibration = UNCALIBRATED,
    stride: int = STRIDE,
) -> Schedule:
    """Run `requests` through one engine that can cache `kv_tokens` tokens.

    With `concurrency`, a request is submitted when one before it finishes. `calibration` turns what `costs` says of
    an iteration into the seconds it takes. Raises DoesNotFit when a request can never be admitted.
    """
    _check_fit(requests, limits, kv_tokens)
    return _Simulation(costs, requests, limits, kv_tokens, concurrency, calibration, stride).run()


def _check_fit(requests: Sequence[Request], limits: Limits, kv_tokens: int) -> None:
    longest = max(request.tokens for request in requests)
    if longest > kv_tokens:
        raise DoesNotFit(f"the KV cache holds {kv_tokens:,} tokens, one request needs {longest:,}")
    prompt = max(request.input_tokens for request in requests)
    if not limits.chunked_prefill and prompt > limits.max_num_tokens:
        raise DoesNotFit(
            f"a prompt of {prompt:,} tokens needs chunked prefill, or max_num_tokens above {limits.max_num_tokens:,}"
        )


class _Simulation:
    """State of one run. Counts of requests are indexes into `requests`; times are seconds."""

    def __init__(
        self,
        costs: StepCosts,
        requests: Sequence[Request],
        limits: Limits,
        kv_tokens: int,
        concurrency: int | None,
        calibration: Calibration,
        stride: int,
    ) -> None:
        self.costs, self.requests, self.limits = costs, requests, limits
        self.kv_tokens, self.closed_loop = kv_tokens, concurrency is not None
        self.calibration, self.stride = calibration, stride
        self.graph_sizes = _graph_sizes(limits)
        count = len(requests)
        self.submitted = [request.arrival or 0.0 for request in requests]
        self.first, self.last = [0.0] * count, [0.0] * count
        self.offered = count if concurrency is None else min(concurrency, count)
        self.head = 0  # the next request to admit
        self.unfinished_prompts: deque[tuple[int, int]] = deque()  # chunked prefill: request, tokens left
        self.finishing: dict[int, list[int]] = {}  # iteration -> requests that end with it
        self.decoding = 0
        self.cached = 0  # tokens held by decoding sequences
        self.reserved = 0  # tokens of cache promised to admitted requests
        self.admitted = 0
        self.finished = 0
        self.iteration = 0
        self.now = 0.0
        self.busy = 0.0
        self.batch_time = 0.0
        self.decode_time = 0.0
        self.kv_time = 0.0
        self.peak = 0
        self.peak_cached = 0

    def run(self) -> Schedule:
        while self.finished < len(self.requests):
            whole, chunks, joining = self._admit()
            if whole or chunks:
                self._advance(self._mixed_seconds(whole, chunks, len(joining)), 1, joining)
            elif self.decoding:
                steps = self._steps_until_change()
                self._advance(self._decode_seconds(steps), steps, joining)
            else:  # idle until the next arrival
                self.now = max(self.now, self.submitted[self.head])
        return Schedule(
            tuple(
                Trace(self.submitted[i], self.first[i], self.last[i], r.input_tokens, r.output_tokens)
                for i, r in enumerate(self.requests)
            ),
            self.iteration,
            self.batch_time / self.busy,
            self.peak,
            self.kv_time / self.decode_time if self.decode_time else 0.0,
            self.peak_cached,
        )

    def _admit(self) -> tuple[list[int], list[tuple[int, int]], list[int]]:
        """Prompt work of the next iteration: whole prompts by length, chunks as (tokens before, tokens), and
        the requests whose prompt is complete with it."""
        budget = self.limits.max_num_tokens - self.decoding
        whole: list[int] = []
        chunks: list[tuple[int, int]] = []
        joining: list[int] = []
        while self.unfinished_prompts and budget > 0:
            index, left = self.unfinished_prompts.popleft()
            piece = min(left, budget)
            budget -= piece
            chunks.append((self.requests[index].input_tokens - left, piece))
            if piece == left:
                joining.append(index)
            else:
                self.unfinished_prompts.appendleft((index, left - piece))
        while (
            self.head < self.offered
            and self.admitted < self.limits.max_batch_size
            and self.submitted[self.head] <= self.now
            and budget > 0
        ):
            request = self.requests[self.head]
            prompt = request.input_tokens
            if self.reserved + request.tokens > self.kv_tokens:
                break
            if prompt <= budget:
                whole.append(prompt)
                joining.append(self.head)
                budget -= prompt
            elif self.limits.chunked_prefill:
                chunks.append((0, budget))
                self.unfinished_prompts.append((self.head, prompt - budget))
                budget = 0
            else:
                break
            self.reserved += request.tokens
            self.admitted += 1
            self.head += 1
        return whole, chunks, joining

    def _mixed_seconds(self, whole: list[int], chunks: list[tuple[int, int]], joining: int) -> float:
        tokens = sum(whole) + sum(piece for _, piece in chunks)
        seconds = self.costs.shared(tokens, self.decoding, joining)
        if whole:
            # Attention grows with the square of the length: prompts of the mean length would cost too little.
            typical = math.sqrt(sum(length * length for length in whole) / len(whole))
            seconds += self.costs.prompt_attention(len(whole), round(typical))
        for before, piece in chunks:  # causal attention over a chunk is the difference of two prefixes
            seconds += self.costs.prompt_attention(1, before + piece)
            if before:
                seconds -= self.costs.prompt_attention(1, before)
        if self.decoding:
            seconds += self.costs.decode_attention(self.decoding, self._mean_kv())
        return seconds

    def _decode_seconds(self, steps: int) -> float:
        """One decode iteration in the middle of the next `steps`, padded to the CUDA graph that runs it."""
        batch = self.decoding
        kv = self._mean_kv() + steps // 2
        place = bisect.bisect_left(self.graph_sizes, batch)
        padded = self.graph_sizes[place] if place < len(self.graph_sizes) else batch
        if padded == batch:
            return self.costs.decode(batch, kv)
        # Dummies run through every layer, but hold one token each.
        return (
            self.costs.decode(padded, 1)
            - self.costs.decode_attention(padded, 1)
            + self.costs.decode_attention(batch, kv)
        )

    def _steps_until_change(self) -> int:
        """Decode iterations before a request ends or may join, at most `stride`."""
        steps = min(min(self.finishing) - self.iteration, self.stride)
        if self.head < self.offered and self.submitted[self.head] > self.now:
            until_arrival = self.submitted[self.head] - self.now
            steps = min(steps, math.ceil(until_arrival / (self._decode_seconds(1) * self.calibration.scale)))
        return max(steps, 1)

    def _advance(self, seconds: float, steps: int, joining: list[int]) -> None:
        """Time passes; every decoding sequence gains `steps` tokens, a joining one its first."""
        duration = seconds * self.calibration.scale * steps + self.calibration.request_seconds * len(joining)
        batch = self.decoding + len(joining)
        self.now += duration
        self.busy += duration
        self.batch_time += duration * batch
        if self.decoding:
            self.decode_time += duration
            self.kv_time += duration * (self.cached / self.decoding + (steps - 1) / 2)
        self.peak = max(self.peak, batch)
        self.iteration += steps
        self.cached += self.decoding * steps
        self.peak_cached = max(self.peak_cached, self.cached)
        for index in joining:
            request = self.requests[index]
            self.first[index] = self.now
            self.decoding += 1
            self.cached += request.input_tokens + 1
            self.finishing.setdefault(self.iteration + request.output_tokens - 1, []).append(index)
        for index in self.finishing.pop(self.iteration, ()):
            self._finish(index)

    def _finish(self, index: int) -> None:
        tokens = self.requests[index].tokens
        self.last[index] = self.now
        self.finished += 1
        self.admitted -= 1
        self.decoding -= 1
        self.cached -= tokens
        self.reserved -= tokens
        if self.closed_loop and self.offered < len(self.requests):
            self.submitted[self.offered] = self.now
            self.offered += 1

    def _mean_kv(self) -> int:
        return max(1, self.cached // self.decoding)


def _graph_sizes(limits: Limits) -> list[int]:
    """TensorRT-LLM drops graph sizes above the largest decode batch there can be, and adds that batch."""
    largest = min(limits.max_batch_size, limits.max_num_tokens)
    sizes = {size for size in limits.cuda_graph_batch_sizes if size <= largest}
    if any(size > largest for size in limits.cuda_graph_batch_sizes):
        sizes.add(largest)
    return sorted(sizes)
