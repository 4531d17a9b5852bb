"""The load of a benchmark: requests in flight up to a limit, each with a record of what came when."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .dataset import Entry
from .errors import RequestError
from .sampling import SamplingParams

UNSEEN = -1  # when the first token came, of a request that does not stream


@dataclass(frozen=True)
class Record:
    """Times in nanoseconds of time.perf_counter_ns."""

    id: int
    num_input_tokens: int
    start_timestamp: int
    first_token_timestamp: int
    end_timestamp: int
    decode_iteration: int
    tokens: tuple[int, ...]

    @property
    def said(self) -> int:
        return len(self.tokens)

    @property
    def latency(self) -> int:
        return self.end_timestamp - self.start_timestamp

    @property
    def ttft(self) -> int:
        """0 where it is not known."""
        return self.first_token_timestamp - self.start_timestamp if self.first_token_timestamp > 0 else 0

    @property
    def generation_time(self) -> int:
        return self.latency - self.ttft

    @property
    def tpot(self) -> float:
        return self.generation_time / (self.said - 1) if self.said > 1 else 0.0

    @property
    def generation_speed(self) -> float:
        """Tokens per nanosecond after the first one."""
        return (self.said - 1) / self.generation_time if self.generation_time else 0.0

    def as_json(self, text: str) -> dict[str, Any]:
        """As --request_json has it; derived values are in nanoseconds and tokens per nanosecond."""
        return {
            "id": self.id,
            "num_input_tokens": self.num_input_tokens,
            "error_tokens": 0,
            "start_timestamp": self.start_timestamp,
            "first_token_timestamp": self.first_token_timestamp,
            "end_timestamp": self.end_timestamp,
            "decode_iteration": self.decode_iteration,
            "num_total_output_tokens": self.said,
            "num_generated_tokens": self.said - 1,
            "generation_time": self.generation_time,
            "time_to_first_token": self.ttft,
            "intertoken_latency": self.tpot,
            "end_to_end_latency": self.latency,
            "total_token_throughput": self.said / self.latency,
            "generation_token_throughput": self.generation_speed,
            "output": text,
            "output_tokens": self.said,
        }


async def driven(
    llm: Any, entries: Sequence[Entry], *, end_id: int, concurrency: int, streaming: bool
) -> tuple[list[Record], list[RequestError]]:
    """(records in the order requests ended, errors of those that failed). `concurrency` below 1 is no limit."""
    places = asyncio.Semaphore(concurrency if concurrency > 0 else len(entries))
    records: list[Record] = []
    errors: list[RequestError] = []

    async def one(entry: Entry) -> None:
        async with places:
            params = SamplingParams(max_tokens=entry.output_tokens, end_id=end_id, pad_id=end_id)
            start, first = time.perf_counter_ns(), UNSEEN
            try:
                output = llm.generate_async(entry.input_ids, params, streaming=streaming)
                if streaming:
                    async for _ in output:
                        first = time.perf_counter_ns() if first == UNSEEN else first
                else:
                    await output.aresult()
            except RequestError as problem:
                errors.append(problem)
                return
            end, tokens = time.perf_counter_ns(), tuple(output.outputs[0].token_ids)
            iterations = max(0, output.decoding_iter - 1)
            records.append(Record(output.request_id, len(entry.input_ids), start, first, end, iterations, tokens))

    await asyncio.gather(*(one(entry) for entry in entries))
    return records, errors
