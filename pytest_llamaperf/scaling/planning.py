"""What a collection found becomes a manifest, with the bill: GPU-hours in shards, and with a process for every test."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pytest_llamaperf.scaling.durations import Known, expected
from pytest_llamaperf.scaling.inventory import Inventory, NeededTest
from pytest_llamaperf.scaling.manifest import ACCURACY, PERFORMANCE, About, Manifest, Shard
from pytest_llamaperf.scaling.shards import NO_ENGINE, grouped

# Seconds of a pytest process without an engine: Python, imports, collection.
PROCESS = 5.0


@dataclass(frozen=True)
class Bill:
    """Of a manner to run all tests: processes, starts of engines, device-hours (GPUs, or slots of a CPU)."""

    processes: int
    loads: int
    hours: float


@dataclass(frozen=True)
class Plan:
    """`engines` counts the engine keys; `naive` is the bill of a process for every test."""

    manifest: Manifest
    engines: int
    bill: Bill
    naive: Bill

    @property
    def node_hours(self) -> float:
        """Of all shards one after the other."""
        return sum(shard.minutes for shard in self.manifest.shards) / 60


def planned(inventory: Inventory, *, id: str, now: str, options: Sequence[str], known: Sequence[Known] = ()) -> Plan:
    """Shards, the largest first. `now` is UTC, ISO 8601."""
    groups = grouped({test.nodeid: test.engines for test in inventory.tests})
    tests: dict[tuple[str, ...], list[NeededTest]] = {}
    for test in inventory.tests:
        tests.setdefault(groups[test.engines[0] if test.engines else NO_ENGINE], []).append(test)
    shards, naive = [], []
    for keys, found in tests.items():
        guess = _seconds(inventory, found)
        seconds, basis = expected(known, [test.nodeid for test in found], guess)
        shards.append(
            Shard(
                key=keys[0],
                engines=keys if keys != (NO_ENGINE,) else (),
                tests=tuple(test.nodeid for test in found),
                devices=_devices(inventory, keys),
                kind=PERFORMANCE if any(work.measured for test in found for work in test.work) else ACCURACY,
                minutes=round(seconds / 60, 3),
                basis=basis,
                loads=sum(_loads(found).values()),
                checkpoints=_checkpoints(inventory, keys),
            )
        )
        # What loads and works longer or shorter than guessed does so in a process of its own as well.
        naive += [_alone(inventory, test, seconds / guess) for test in found]
    shards = _in_turn(shards)
    shards.sort(key=lambda shard: (-shard.devices, -shard.minutes, shard.key))
    manifest = Manifest(id, now, tuple(options), About(**inventory.about), tuple(shards), tuple(inventory.deselected))
    return Plan(
        manifest,
        len(inventory.engines),
        Bill(len(shards), sum(shard.loads for shard in shards), sum(s.devices * s.minutes for s in shards) / 60),
        Bill(len(naive), sum(bill.loads for bill in naive), sum(bill.hours for bill in naive)),
    )


def _loads(tests: Iterable[NeededTest]) -> dict[str, int]:
    """Engine key -> its starts in a process that runs these tests: all its work shares them."""
    loads: dict[str, int] = {}
    for test in tests:
        for work in test.work:
            loads[work.engine] = max(loads.get(work.engine, 0), work.loads)
    return loads


def _seconds(inventory: Inventory, tests: Sequence[NeededTest]) -> float:
    """Guessed for a process that runs these tests; two tests that ask the same of one engine ask it once."""
    work = {(each.engine, each.case): each.seconds for test in tests for each in test.work}
    loading = sum(inventory.engines[key].load * loads for key, loads in _loads(tests).items())
    return PROCESS + loading + sum(work.values())


def _alone(inventory: Inventory, test: NeededTest, factor: float) -> Bill:
    hours = _seconds(inventory, [test]) * factor / 3600 * _devices(inventory, test.engines)
    return Bill(1, sum(_loads([test]).values()), hours)


def _devices(inventory: Inventory, keys: Sequence[str]) -> int:
    """Engines that are compared are open in turn, or, on a CPU, take turns: they share their devices."""
    return max((inventory.engines[key].devices for key in keys if key in inventory.engines), default=1)


def _checkpoints(inventory: Inventory, keys: Sequence[str]) -> tuple[str, ...]:
    found = {inventory.engines[key].checkpoint for key in keys if key in inventory.engines}
    return tuple(sorted(name for name in found if name))


def _in_turn(shards: Sequence[Shard]) -> list[Shard]:
    """Of shards that need the same quantized checkpoint the shortest makes it, and the others wait for its end.

    They would wait for each other anyway, but holding GPUs. Waiting for what is shorter never goes in a circle.
    """
    makers: dict[str, Shard] = {}
    for shard in sorted(shards, key=lambda shard: (shard.minutes, shard.key)):
        for checkpoint in shard.checkpoints:
            makers.setdefault(checkpoint, shard)
    return [dataclasses.replace(shard, after=_others(shard, makers)) for shard in shards]


def _others(shard: Shard, makers: Mapping[str, Shard]) -> tuple[str, ...]:
    found = {makers[checkpoint].key for checkpoint in shard.checkpoints}
    return tuple(sorted(found - {shard.key}))
