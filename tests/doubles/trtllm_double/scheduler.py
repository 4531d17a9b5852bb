"""In-flight batching: one thread owns the network; requests join the batch in every step, and leave it when they end."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from . import faults, logprobs
from .network import Computation
from .reuse import Prefixes
from .sampling import Ending
from .timing import Timing


@dataclass(frozen=True)
class Response:
    """What is new of a request: tokens since the response before, and at its end everything else.

    `timing` is None until the first token is there. `error` ends the request.
    """

    tokens: tuple[int, ...] = ()
    logprobs: tuple[dict[int, logprobs.Logprob], ...] = ()
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    drop: int = 0  # tokens at the end that were a stop and are not shown
    timing: Timing | None = None
    prompt_logprobs: list[dict[int, logprobs.Logprob]] | None = None
    context_logits: torch.Tensor | None = None
    error: Exception | None = None

    @property
    def last(self) -> bool:
        return self.finish_reason is not None or self.error is not None


@dataclass
class Request:
    """`answer` is given every response. `interval` is how many tokens come together; 0: all of them, at the end.

    `prompt_logprobs` and `logprobs` are how many likely tokens are told for each; None: none. `own_token` tells those
    of the prompt as well.
    """

    number: int
    prompt: list[int]
    ending: Ending
    interval: int
    answer: Callable[[Response], None]
    prompt_logprobs: int | None = None
    own_token: bool = False
    logprobs: int | None = None
    context_logits: bool = False
    aborted: bool = False
    tokens: list[int] = field(default_factory=list)
    told_logprobs: list[dict[int, logprobs.Logprob]] = field(default_factory=list)
    sent: int = 0
    reused: int = 0
    context: torch.Tensor | None = None
    timing: Timing = field(default_factory=Timing)


class Scheduler:
    """At most `most_requests` in the batch; the prompts of a step are at most `most_tokens`, padding included."""

    def __init__(self, network: Computation, most_requests: int, most_tokens: int, prefixes: Prefixes | None) -> None:
        self._network, self._prefixes = network, prefixes
        self._most_requests, self._most_tokens = min(most_requests, network.slots), most_tokens
        self._waiting: deque[Request] = deque()
        self._places: dict[int, Request] = {}
        self._steps = 0
        self._closing = False
        self.broken: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="executor", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Raises RuntimeError once the executor has shut down, by itself or because it was told to."""
        request.timing.arrival = time.monotonic()
        with self._changed:
            if self._closing or self.broken:
                raise RuntimeError("LLM is shutting down")
            self._waiting.append(request)
            self._changed.notify()

    def close(self) -> None:
        """Waits for the step under way, however long it takes. Requests that are not finished never will be."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    @torch.inference_mode()
    def _run(self) -> None:
        try:
            while self._has_work():
                self._step()
        except BaseException as problem:  # noqa: BLE001  told to all who wait
            with self._changed:
                self.broken = problem
                left = [*self._places.values(), *self._waiting]
                self._waiting.clear()
            error = problem if isinstance(problem, Exception) else RuntimeError(str(problem))
            for request in left:
                request.answer(Response(error=error))

    def _has_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._waiting or self._places)
            return not self._closing

    def _step(self) -> None:
        """A token for everyone in the batch, and the first one for those who join it."""
        self._steps += 1
        faults.at(faults.Place.STEP, self._steps)
        self._drop_aborted()
        hidden: dict[int, torch.Tensor] = {}
        if self._places:
            hidden = self._network.decode(
                {slot: (r.tokens[-1], len(r.prompt) + len(r.tokens) - 1) for slot, r in self._places.items()}
            )
        joining = self._joining()
        if joining:
            now = time.monotonic()
            for request in joining.values():
                request.timing.scheduled, request.timing.first_step = now, self._steps
            prompts = [request.prompt for request in joining.values()]
            for (slot, request), x in zip(joining.items(), self._network.prompts(prompts, list(joining)), strict=True):
                hidden[slot] = x[-1]
                self._keep_context(request, x)
            self._places |= joining
        if hidden:
            self._choose(hidden)

    def _drop_aborted(self) -> None:
        gone = [(slot, request) for slot, request in self._places.items() if request.aborted]
        for slot, request in gone:
            del self._places[slot]
            request.answer(Response(finish_reason="cancelled"))
        with self._changed:
            unheard = [request for request in self._waiting if request.aborted]
            self._waiting = deque(request for request in self._waiting if not request.aborted)
        for request in unheard:
            request.answer(Response(finish_reason="cancelled"))

    def _joining(self) -> dict[int, Request]:
        """The next requests by the slots they get; one whose prompt is too long for a step comes alone."""
        joining: dict[int, Request] = {}
        free = [slot for slot in range(self._most_requests) if slot not in self._places]
        longest = 0
        with self._changed:
            while self._waiting and len(joining) < len(free):
                longest = max(longest, len(self._waiting[0].prompt))
                if joining and longest * (len(joining) + 1) > self._most_tokens:
                    break
                joining[free[len(joining)]] = self._waiting.popleft()
        return joining

    def _keep_context(self, request: Request, hidden: torch.Tensor) -> None:
        if self._prefixes is not None:
            request.reused = self._prefixes.reused(request.prompt)
            self._prefixes.add(request.prompt)
        if request.context_logits or request.prompt_logprobs:
            request.context = self._network.scores(hidden)[request.reused :].clone()

    def _choose(self, hidden: dict[int, torch.Tensor]) -> None:
        scores = self._network.scores(torch.stack(list(hidden.values())))
        for row, slot in enumerate(hidden):
            ending, said = self._places[slot].ending, len(self._places[slot].tokens)
            banned = ending.banned(said)
            if banned is not None:
                scores[row, banned] = -torch.inf
        chosen = scores.max(-1).indices.tolist()
        now = time.monotonic()
        for row, (slot, token) in enumerate(zip(hidden, chosen, strict=True)):
            request = self._places[slot]
            request.tokens.append(token)
            if request.logprobs is not None:
                request.told_logprobs += logprobs.told(scores[row : row + 1], max(1, request.logprobs), [token])
            request.timing.token(now, self._steps)
            self._tell(slot, request)

    def _tell(self, slot: int, request: Request) -> None:
        """Answer if the request ends, or if it streams and a response is due: the first, and every so many tokens."""
        ended = faults.at(faults.Place.ENDING, request.ending.of(request.tokens), request)
        count = len(request.tokens)
        if ended:
            del self._places[slot]
            request.answer(self._last(request, *ended))
        elif request.interval and (count == 1 or count % request.interval == 0):
            request.answer(
                Response(tuple(request.tokens[request.sent :]), tuple(request.told_logprobs[request.sent :]))
            )
            request.sent = count

    def _last(self, request: Request, finish_reason: str, stop_reason: Any) -> Response:
        request.timing.count(len(request.prompt), request.reused, len(request.tokens))
        prompt_logprobs = None
        if request.prompt_logprobs and request.context is not None:
            follow = [*request.prompt[1:], request.tokens[0]][request.reused :]
            rows = logprobs.told(request.context, request.prompt_logprobs, follow if request.own_token else None)
            prompt_logprobs, _ = faults.at(faults.Place.LOGPROBS, (rows, follow))
        return Response(
            tokens=tuple(request.tokens[request.sent :]),
            logprobs=tuple(request.told_logprobs[request.sent :]),
            finish_reason=finish_reason,
            stop_reason=stop_reason,
            drop=request.ending.stop_length(stop_reason),
            timing=request.timing,
            prompt_logprobs=prompt_logprobs,
            context_logits=faults.at(faults.Place.LOGITS, request.context) if request.context_logits else None,
        )
