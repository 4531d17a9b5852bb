"""In-flight batching: requests join the batch as others leave it, in one group of slots for each pipeline stage.

While one stage works on a group, the next works on the group before it. Every rank plays the same schedule: it depends
on how many tokens requests ask for, and on which come out only where they may end an answer; then every rank is told them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch

from .stages import DecodeStep, PromptStep, Stage


@dataclass
class Request:
    """A prompt and what came of it. Times in seconds of time.perf_counter, on the rank that answers."""

    prompt: list[int]
    wanted: int
    tokens: list[int] = field(default_factory=list)
    submitted: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0


@dataclass
class _Place:
    """A request in a slot: `position` is where its next token will be written."""

    request: Request
    position: int
    left: int
    token: int = 0


class _Queue:
    """Requests wait until fewer than `concurrency` are in flight; a request is submitted when it may start."""

    def __init__(self, requests: Sequence[Request], concurrency: int | None) -> None:
        self._waiting = deque(requests)
        self._released: deque[Request] = deque()
        self.release(len(requests) if concurrency is None else concurrency, time.perf_counter())

    def release(self, count: int, now: float) -> None:
        for _ in range(min(count, len(self._waiting))):
            request = self._waiting.popleft()
            request.submitted = now
            self._released.append(request)

    def take(self, count: int, most_tokens: int) -> list[Request]:
        """The next requests, at most `count` and at most `most_tokens` of prompt together, padding included."""
        taken: list[Request] = []
        longest = 0
        while self._released and len(taken) < count:
            longest = max(longest, len(self._released[0].prompt))
            if taken and longest * (len(taken) + 1) > most_tokens:
                break
            taken.append(self._released.popleft())
        return taken

    def __bool__(self) -> bool:
        return bool(self._waiting or self._released)


class _Group:
    """Slots [start, start + size) that make their steps together."""

    def __init__(self, start: int, size: int) -> None:
        self.start, self.size = start, size
        self.places: dict[int, _Place] = {}
        self.under_way: tuple[PromptStep | DecodeStep, list[int], torch.Tensor | None] | None = None

    def free(self) -> list[int]:
        return [slot for slot in range(self.start, self.start + self.size) if slot not in self.places]

    def joining(self, requests: Sequence[Request]) -> tuple[PromptStep | DecodeStep, list[int]]:
        slots = self.free()[: len(requests)]
        longest = max(len(request.prompt) for request in requests)
        tokens = torch.zeros(len(requests), longest, dtype=torch.long)
        for row, (slot, request) in enumerate(zip(slots, requests, strict=True)):
            tokens[row, : len(request.prompt)] = torch.tensor(request.prompt)
            self.places[slot] = _Place(request, len(request.prompt), request.wanted)
        lengths = torch.tensor([len(request.prompt) for request in requests])
        return PromptStep(tokens, lengths, torch.tensor(slots)), slots

    def going_on(self) -> tuple[PromptStep | DecodeStep, list[int]]:
        """Slots between the first and the last that are empty are carried along; what is written there is overwritten
        when a request joins."""
        slots = list(range(self.start, max(self.places) + 1))
        places = [self.places.get(slot) for slot in slots]
        positions = [place.position if place else 0 for place in places]
        tokens = torch.tensor([place.token if place else 0 for place in places])
        for place in self.places.values():
            place.position += 1
        return DecodeStep(tokens, torch.tensor(positions), self.start, max(positions) + 1), slots


class _Ends:
    """Runs of tokens that end an answer, and are its last ones."""

    def __init__(self, stops: Collection[tuple[int, ...]]) -> None:
        self._stops = frozenset(stops)
        self._lengths = sorted({len(stop) for stop in stops})

    def __bool__(self) -> bool:
        return bool(self._stops)

    def end(self, tokens: list[int]) -> bool:
        return any(tuple(tokens[-length:]) in self._stops for length in self._lengths)


class Batcher:
    """`slots` requests in flight for each of the pipeline's groups; an iteration takes at most `most_tokens` of prompts."""

    def __init__(self, stage: Stage, *, slots: int, most_tokens: int) -> None:
        self._stage = stage
        self._groups = stage.network.cut.pp
        self._slots, self._most_tokens = slots, most_tokens

    @torch.inference_mode()
    def run(
        self, requests: Sequence[Request], concurrency: int | None = None, stops: Collection[tuple[int, ...]] = ()
    ) -> None:
        """Answer all requests with the most likely tokens: as many as each wants, or up to the first of `stops`.

        `concurrency` is how many are in flight at most; None: all are submitted at once. Raises ValueError for a
        request that no slot can hold, or of nothing.
        """
        positions = self._stage.network.cache.positions
        for request in requests:
            if not request.prompt or request.wanted < 1:
                raise ValueError("a request has at least one token of prompt and wants at least one")
            if len(request.prompt) + request.wanted > positions:
                raise ValueError(
                    f"a request of {len(request.prompt)} + {request.wanted} tokens is longer than the {positions} "
                    "the engine was opened for"
                )
        queue = _Queue(requests, concurrency)
        ends = _Ends(stops)
        groups = [_Group(number * self._slots, self._slots) for number in range(self._groups)]
        # Few requests in flight are spread over the groups, or one stage would wait for the other.
        share = -(-min(len(requests), concurrency or len(requests)) // self._groups)
        while queue or any(group.places for group in groups):
            for group in groups:
                self._collect(group, queue, ends)
                room = min(share, self._slots) - len(group.places)
                joining = queue.take(room, self._most_tokens) if room > 0 else []
                if joining or group.places:
                    step, slots = group.joining(joining) if joining else group.going_on()
                    group.under_way = (step, slots, self._stage.choose(step, told=bool(stops)))
        self._stage.settle()

    def _collect(self, group: _Group, queue: _Queue, ends: _Ends) -> None:
        """What the group's last step chose: one token for every request in it."""
        if group.under_way is None:
            return
        step, slots, early = group.under_way
        group.under_way = None
        chosen = self._stage.chosen(step, early, told=bool(ends))
        now = time.perf_counter()
        tokens = chosen.tolist() if chosen is not None else [0] * len(slots)
        finished = 0
        for slot, token in zip(slots, tokens, strict=True):
            place = group.places.get(slot)
            if place is None:
                continue
            place.token = token
            place.left -= 1
            request = place.request
            request.tokens.append(token)
            request.last_token = now
            if len(request.tokens) == 1:
                request.first_token = now
            if not place.left or ends.end(request.tokens):
                del group.places[slot]
                finished += 1
        queue.release(finished, now)
