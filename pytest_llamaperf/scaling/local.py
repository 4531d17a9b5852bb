"""Shards on this node: started on devices of their own, ended with all they started, tried once more where they were lost."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pytest_llamaperf.engines import PREDICTED, TEMPORARY
from pytest_llamaperf.errors import EngineError, UsageError
from pytest_llamaperf.gpu_watch.clocks import unlock
from pytest_llamaperf.hosting.processes import Exit, Family
from pytest_llamaperf.leftovers import sweep
from pytest_llamaperf.reservations import CPU_NAME, RUN, Taken, cannot_be_locked, folder, reserve
from pytest_llamaperf.scaling.contract import (
    ATTEMPTS,
    DEVICES,
    GRANT,
    MACHINE,
    OUTPUT,
    Campaign,
    End,
    Ending,
    Outcome,
)
from pytest_llamaperf.scaling.manifest import Shard
from pytest_llamaperf.scaling.queueing import Running, Waiting, queue_of, seconds_left, startable
from pytest_llamaperf.scaling.stopping import stopping
from pytest_llamaperf.scaling.watching import Busy, Standing, Watcher, duration, ranges
from pytest_llamaperf.wording import shown_path

# Seconds between two looks at what has ended, and between two pictures of how things stand.
GLANCE, PICTURE = 0.05, 1.0


@dataclass
class _Started:
    shard: Shard
    demand: int
    devices: tuple[int, ...]
    began: float
    process: subprocess.Popen[bytes]
    family: Family


@dataclass
class Node:
    """This machine: `devices` as a process is told them, on GPUs in CUDA_VISIBLE_DEVICES. `machine` is its name.

    `alone`: a shard that measures has the whole node, whatever part of it it uses.
    """

    campaign: Campaign
    devices: Sequence[str]
    machine: str
    watcher: Watcher
    alone: bool = True
    _free: list[int] = field(init=False)
    _retired: list[int] = field(init=False, default_factory=list)
    _running: list[_Started] = field(init=False, default_factory=list)
    _attempts: dict[str, int] = field(init=False, default_factory=dict)
    _without: dict[str, str] = field(init=False, default_factory=dict)
    _done: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._free = list(range(len(self.devices)))

    def run(self) -> Outcome:
        """Every shard that has no results yet. Ctrl-C, SIGTERM and SIGHUP end those under way, and the rest waits for
        the next `run`.

        Raises UsageError where another process runs the same manifest, or measures on this node.
        """
        with self.campaign.locked(), self._reserved(), stopping() as stopped:
            self._end_what_was_left()
            remaining = self.campaign.remaining()
            self._done = len(self.campaign.manifest.shards) - len(remaining)
            queue = list(remaining)
            try:
                while (queue or self._running) and not stopped:
                    self._start_what_fits(queue)
                    if not self._running:
                        break  # the devices that are left are too few
                    self._show(queue)
                    self._wait(stopped)
                    queue += self._take_back()
            finally:
                left = [*queue, *(each.shard for each in self._running)]
                for each in self._running:
                    self._end(each)
            return Outcome(self._without, tuple(left), bool(stopped))

    @contextlib.contextmanager
    def _reserved(self) -> Iterator[None]:
        """The whole node, where shards measure: they belong to this process, and nobody else measures beside them."""
        about, place = self.campaign.manifest.about, folder()
        if about.engine == PREDICTED:
            yield
            return
        try:
            reservation = reserve(self.devices if about.on_gpus else [CPU_NAME], place)
        except Taken as taken:
            raise UsageError(f"{taken}; wait for its end, or end it") from None
        except OSError as problem:
            raise UsageError(cannot_be_locked(place, problem)) from None
        try:
            if reservation.alone:  # as none of its shards is
                self._tidy(place)
            yield
        finally:
            reservation.release()

    def _tidy(self, place: Path) -> None:
        """What sessions left that were killed. Raises UsageError where clocks stay locked."""
        sweep(TEMPORARY)
        if self.campaign.manifest.about.on_gpus:
            try:
                unlock(self.campaign.manifest.about.gpu, place)
            except EngineError as problem:
                raise UsageError(str(problem)) from None

    def _end_what_was_left(self) -> None:
        """Of an earlier `run` that was killed: whatever it started still holds devices."""
        family = Family(None, self.campaign.manifest.id, variable=RUN)
        if left := family.alive():
            self.watcher.tell(f"ending {len(left)} processes that an earlier run left behind")
            family.end()
        if left := family.alive():
            raise UsageError(f"processes of an earlier run do not end: {', '.join(str(each.pid) for each in left)}")

    def _usable(self) -> int:
        return len(self.devices) - len(self._retired)

    def _waiting(self, queue: Sequence[Shard]) -> list[Waiting]:
        return queue_of(queue, self._usable(), alone=self.alone)

    def _at_work(self) -> list[Running]:
        return [Running(e.shard.key, e.demand, e.began + e.shard.minutes * 60) for e in self._running]

    def _start_what_fits(self, queue: list[Shard]) -> None:
        now = time.monotonic()
        for each in startable(self._waiting(queue), self._at_work(), devices=self._usable(), now=now):
            shard = next(shard for shard in queue if shard.key == each.key)
            queue.remove(shard)
            devices = tuple(self._free[: shard.devices])
            try:
                self._start(shard, each.demand, devices)
            except OSError as problem:
                self._ended(shard, Ending(End.BROKEN, f"cannot be started: {problem}"))

    def _start(self, shard: Shard, demand: int, devices: tuple[int, ...]) -> None:
        campaign = self.campaign
        campaign.set_aside(shard)
        results = campaign.folder(shard)
        results.mkdir(parents=True)
        mark, given = uuid.uuid4().hex, ",".join(self.devices[number] for number in devices)
        environment = {**os.environ, **campaign.environment(), GRANT: mark, DEVICES: given, MACHINE: self.machine}
        if campaign.manifest.about.on_gpus:
            environment["CUDA_VISIBLE_DEVICES"] = given
        with (results / OUTPUT).open("wb") as output:
            process = subprocess.Popen(
                campaign.command(shard),
                cwd=campaign.manifest.about.directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that Ctrl-C does not reach it, and a group can be ended
            )
        self._free = [number for number in self._free if number not in devices]
        self._attempts[shard.key] = self._attempts.get(shard.key, 0) + 1
        family = Family(process.pid, mark, variable=GRANT)
        self._running.append(_Started(shard, demand, devices, time.monotonic(), process, family))
        self.watcher.tell(f"started  {shard} on {ranges(devices)}")

    def _wait(self, stopped: Sequence[int]) -> None:
        """Until one has ended, or there is something new to show."""
        until = time.monotonic() + PICTURE
        while time.monotonic() < until and not stopped:
            if any(each.family.exit_by() is not None for each in self._running):
                return
            time.sleep(GLANCE)

    def _take_back(self) -> list[Shard]:
        """Devices of what has ended, and the shards to try again."""
        again = []
        for each in [each for each in self._running if each.family.exit_by() is not None]:
            exit = self._end(each)
            self._running.remove(each)
            ending = self.campaign.ending(each.shard, exit)
            if ending.end is End.LOST and self._attempts[each.shard.key] < ATTEMPTS:
                self.watcher.tell(f"lost     {each.shard}: {ending.reason}; it is tried once more")
                again.append(each.shard)
            else:
                self._ended(each.shard, ending, time.monotonic() - each.began)
        return again

    def _end(self, each: _Started) -> Exit:
        """With all it started, before anybody gets its devices: some may have left its group and outlive it.

        Devices of processes that the kernel does not end are given to nobody any more.
        """
        exit = each.family.exit_by() or Exit()
        each.family.end()
        with contextlib.suppress(subprocess.TimeoutExpired):
            each.process.wait(GLANCE)
        remains = each.family.alive()
        each.family.forget_leader()
        if remains:
            self._retired += each.devices
            pids = ", ".join(str(process.pid) for process in remains)
            self.watcher.tell(f"{ranges(each.devices)} not used any more: processes {pids} of {each.shard} do not end")
        else:
            self._free = sorted([*self._free, *each.devices])
        return exit

    def _ended(self, shard: Shard, ending: Ending, seconds: float = 0.0) -> None:
        if ending.end is End.DONE:
            self._done += 1
            self.watcher.tell(f"ended    {shard} after {duration(seconds)}")
            return
        self._without[shard.key] = ending.reason
        self.campaign.note(shard, ending.reason)
        output = shown_path(self.campaign.folder(shard) / OUTPUT)
        self.watcher.tell(f"no results of {shard}: {ending.reason}; its output: {output}")

    def _show(self, queue: Sequence[Shard]) -> None:
        now = time.monotonic()
        running = tuple(Busy(each.shard, ranges(each.devices), now - each.began) for each in self._running)
        waiting = self._waiting(queue)
        left = seconds_left(waiting, self._at_work(), devices=self._usable(), now=now)
        by_key = {shard.key: shard for shard in queue}
        next_ones = tuple(by_key[each.key] for each in waiting)
        self.watcher.show(Standing(running, next_ones, self._done, len(self._without), left))
