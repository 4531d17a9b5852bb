"""Which shards start next: a pure function of what waits, what runs and what is free.

All or nothing: a shard gets all its devices at once. In the order given, which is the largest first; what cannot start is
passed by others only where that does not make it wait longer (the backfilling of EASY: Lifka, The ANL/IBM SP scheduling
system, 1995). So eight GPUs come free for the one who needs eight, however many small ones wait.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Waiting:
    """`demand` is how many devices have to be free: all of the node for one that runs alone. `seconds` are expected."""

    key: str
    demand: int
    seconds: float
    after: Collection[str] = ()


@dataclass(frozen=True)
class Running:
    """`ends` is expected, on the clock of `now`; the time may be over."""

    key: str
    demand: int
    ends: float


@dataclass(frozen=True)
class Placed:
    """From `start` to `end`, on the clock of a simulation."""

    key: str
    demand: int
    start: float
    end: float


def startable(waiting: Sequence[Waiting], running: Sequence[Running], *, devices: int, now: float) -> list[Waiting]:
    """What to start now, of `waiting` in their order; nothing whose `after` waits or runs.

    What needs more than all devices, as when some were lost, keeps nobody waiting.
    """
    possible = [each for each in waiting if each.demand <= devices]
    busy = {*(each.key for each in possible), *(each.key for each in running)}
    ready = [each for each in possible if busy.isdisjoint(each.after)]
    held = list(running)
    free = devices - sum(each.demand for each in running)
    started: list[Waiting] = []

    def start(each: Waiting) -> None:
        nonlocal free
        started.append(each)
        held.append(Running(each.key, each.demand, now + each.seconds))
        free -= each.demand

    while ready and ready[0].demand <= free:
        start(ready.pop(0))
    if not ready:
        return started
    reserved_at, spare = _reservation(ready[0], held, free, now)
    for each in ready[1:]:
        ends_before = now + each.seconds <= reserved_at
        if each.demand <= free and (ends_before or each.demand <= spare):
            start(each)
            spare -= 0 if ends_before else each.demand
    return started


def _reservation(head: Waiting, running: Sequence[Running], free: int, now: float) -> tuple[float, int]:
    """When the head of the queue is expected to start, and how many devices it leaves then.

    What runs longer than expected may end at any time: nothing is started before it in the hope that it lasts.
    """
    at = now
    for each in sorted(running, key=lambda each: each.ends):
        if free >= head.demand:
            break
        free += each.demand
        at = max(now, each.ends)
    return at, max(0, free - head.demand)


def simulated(
    waiting: Sequence[Waiting],
    running: Sequence[Running] = (),
    *,
    devices: int,
    now: float = 0.0,
    actual: dict[str, float] | None = None,
) -> list[Placed]:
    """How it goes on from `now`, where everything takes what is expected, or its `actual` seconds.

    What needs more than all `devices` is not among them.
    """
    queue = list(waiting)
    held = [(Placed(each.key, each.demand, now, max(now, each.ends)), each) for each in running]
    placed: list[Placed] = []
    while True:
        for each in startable(queue, [running for _, running in held], devices=devices, now=now):
            queue.remove(each)
            end = now + (each.seconds if actual is None else actual[each.key])
            held.append((Placed(each.key, each.demand, now, end), Running(each.key, each.demand, now + each.seconds)))
        if not held:
            return placed
        now = min(each.end for each, _ in held)
        placed += [each for each, _ in held if each.end <= now]
        held = [each for each in held if each[0].end > now]


def seconds_left(waiting: Sequence[Waiting], running: Sequence[Running], *, devices: int, now: float) -> float:
    """Until all have ended, as far as that is known."""
    return max((each.end for each in simulated(waiting, running, devices=devices, now=now)), default=now) - now
