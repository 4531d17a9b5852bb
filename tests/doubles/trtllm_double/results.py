"""What LLM.generate_async returns: one object for a request, which changes in place as responses are taken from it."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import Generator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from .logprobs import Logprob
from .scheduler import Request, Response
from .tokens import Tokenizer


@dataclass
class CompletionOutput:
    """Everything so far; what ends in _diff is what the response taken last has brought."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    prompt_logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    generation_logits: Any = None
    request_perf_metrics: Any = None
    _before: tuple[int, int, int] = (0, 0, 0)  # tokens, characters, logprobs there were one response ago

    @property
    def length(self) -> int:
        return len(self.token_ids)

    @property
    def token_ids_diff(self) -> list[int]:
        return self.token_ids[self._before[0] :]

    @property
    def text_diff(self) -> str:
        return self.text[self._before[1] :]

    @property
    def logprobs_diff(self) -> list[dict[int, Logprob]]:
        return self.logprobs[self._before[2] :]

    def take(self, response: Response) -> None:
        self._before = (len(self.token_ids), len(self.text), len(self.logprobs))
        self.token_ids += response.tokens
        self.logprobs += response.logprobs
        if response.drop:
            del self.token_ids[-response.drop :], self.logprobs[len(self.token_ids) :]
        if self.logprobs:
            pairs = zip(self.logprobs, self.token_ids, strict=True)
            self.cumulative_logprob = sum(told[token].logprob for told, token in pairs)
        self.finish_reason, self.stop_reason = response.finish_reason, response.stop_reason
        self.prompt_logprobs = response.prompt_logprobs or []


class RequestOutput:
    """An iterator, of either kind, that yields itself; asynchronous only if an event loop ran when it was made.

    Nothing changes unless somebody takes a response: by iterating, or waiting for the result.
    """

    def __init__(
        self, prompt: str | None, request: Request, tokenizer: Tokenizer | None, metric_names: type[Enum] | None
    ) -> None:
        """`tokenizer` makes text of tokens, or None; `metric_names` where performance metrics are asked for."""
        self.prompt, self._request, self._tokenizer, self._metric_names = prompt, request, tokenizer, metric_names
        self.prompt_token_ids = request.prompt
        self.outputs = [CompletionOutput(0)]
        self.context_logits: Any = None
        self.metrics_dict: dict[Enum, float] = {}
        self.decoding_iter = 0
        self.cached_tokens = 0
        self._done = False
        self._responses: queue.SimpleQueue[Response] = queue.SimpleQueue()
        self._news: asyncio.Queue[None] | None = None
        with contextlib.suppress(RuntimeError):  # there is no loop
            self._loop = asyncio.get_running_loop()
            self._news = asyncio.Queue()
        request.answer = self._put

    @property
    def request_id(self) -> int:
        return self._request.number

    @property
    def finished(self) -> bool:
        return self._done

    def abort(self) -> None:
        self._request.aborted = True

    def aborted(self) -> bool:
        return self._request.aborted

    def result(self, timeout: float | None = None) -> RequestOutput:
        """Waits for as long as it takes: as in TensorRT-LLM, the timeout is not heeded."""
        while not self._done:
            self._take(self._responses.get())
        return self

    async def aresult(self) -> RequestOutput:
        while not self._done:
            await self._step()
        return self

    def __await__(self) -> Generator[Any, None, RequestOutput]:
        return self.aresult().__await__()

    def __iter__(self) -> RequestOutput:
        return self

    def __next__(self) -> RequestOutput:
        if self._done:
            raise StopIteration
        self._take(self._responses.get())
        return self

    def __aiter__(self) -> RequestOutput:
        return self

    async def __anext__(self) -> RequestOutput:
        if self._done:
            raise StopAsyncIteration
        await self._step()
        return self

    def _put(self, response: Response) -> None:
        """Called by the executor's thread."""
        self._responses.put(response)
        if self._news is not None:
            with contextlib.suppress(RuntimeError):  # the loop was closed, and nobody waits any more
                self._loop.call_soon_threadsafe(self._news.put_nowait, None)

    async def _step(self) -> None:
        assert self._news is not None, (
            "The asyncio event loop was not present during initialization, so async operations are not available."
        )
        await self._news.get()
        if not self._responses.empty():  # else somebody waited for it without the loop
            self._take(self._responses.get())

    def _take(self, response: Response) -> None:
        self._done = response.last
        if response.error is not None:
            raise response.error
        output = self.outputs[0]
        output.take(response)
        self.decoding_iter = len(output.token_ids)
        if self._tokenizer is not None:
            output.text = self._tokenizer.decode(output.token_ids, skip_special_tokens=True)
        if response.timing is None:
            return
        self.context_logits, self.cached_tokens = response.context_logits, response.timing.reused
        if self._metric_names is not None:
            output.request_perf_metrics = response.timing.native()
            self.metrics_dict = response.timing.metrics(self._metric_names)
