"""Requests by our clock: streamed under one event loop, so that the first and the last token of each are seen.

Tokens in between are not looked at, and with a large `stream_interval` hardly sent: the first and the last always are
(TensorRT-LLM 1.2, _torch/pyexecutor/py_executor.py).
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

Report = Callable[..., None]


class WrongOutput(Exception):
    """An answer is not of the length that was asked for."""


async def timed(
    llm: Any,
    requests: Sequence[tuple[Sequence[int], Any]],
    concurrency: int | None,
    arrivals: Sequence[float] | None,
    report: Report,
) -> list[dict[str, Any]]:
    """Each of (prompt, sampling parameters): when it was submitted, its first and last token, seconds of one clock.

    `arrivals` are seconds after the start at which requests come, of an open loop; else at most `concurrency` are in
    flight. `theirs` is what TensorRT-LLM says of the same request, if it does.
    """
    # The first error ends the run: cancelling the rest is what gather does not do, and what ending the process does.
    turns = asyncio.Semaphore(concurrency or len(requests))
    start = time.perf_counter()
    finished = 0

    async def one(number: int) -> dict[str, Any]:
        nonlocal finished
        if arrivals is not None:
            await asyncio.sleep(start + arrivals[number] - time.perf_counter())
        async with turns:
            reading = await _one(llm, number, *requests[number])
        finished += 1
        report("requests", finished, len(requests))
        return reading

    gc.disable()  # a collection in the middle of thousands of requests would be measured with them
    try:
        return list(await asyncio.gather(*(one(number) for number in range(len(requests)))))
    finally:
        gc.enable()


async def _one(llm: Any, number: int, prompt: Sequence[int], parameters: Any) -> dict[str, Any]:
    submitted = time.perf_counter()
    output = llm.generate_async({"prompt_token_ids": list(prompt)}, parameters, streaming=True)
    first = last = None
    async for _ in output:  # which is `output` itself, changed in place
        last = time.perf_counter()
        if first is None and output.outputs[0].token_ids:
            first = last
    completion = output.outputs[0]
    check_complete(number, completion, parameters.max_tokens)
    return {
        "submitted": submitted,
        "first_token": first,
        "last_token": last,
        "input_tokens": len(prompt),
        "output_tokens": len(completion.token_ids),
        "theirs": _theirs(output),
    }


def check_complete(number: int, completion: Any, wanted: int, *, may_end: bool = False) -> None:
    """Raises WrongOutput: a request that ends early makes everything after it look faster, unless it `may_end`."""
    tokens, reason = len(completion.token_ids), completion.finish_reason
    if may_end and reason == "stop" and tokens <= wanted:
        return
    if tokens != wanted or reason != "length":
        raise WrongOutput(f"request {number}: asked for {wanted} tokens, got {tokens}, finished by {reason!r}")


def _theirs(output: Any) -> dict[str, float]:
    """TensorRT-LLM's own times of a request in seconds. Keys are members of an enum that differs by version."""
    found = getattr(output, "metrics_dict", None) or {}
    named = {getattr(key, "value", key): value for key, value in found.items()}
    return {name: float(named[name]) for name in ("ttft", "tpot", "e2e") if name in named}
