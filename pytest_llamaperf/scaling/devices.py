"""The devices of this node that shards are given: GPUs by their UUIDs, or slots of its CPU."""

from __future__ import annotations

from collections.abc import Iterable

from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.hardware import Machine
from pytest_llamaperf.scaling.contract import device_name
from pytest_llamaperf.scaling.manifest import About, Shard
from pytest_llamaperf.wording import counted


def devices_of(machine: Machine, about: About, shards: Iterable[Shard], slots: int | None) -> tuple[str, ...]:
    """GPUs of the run's kind that this process may use; without GPUs `slots`, by default as many as there are cores.

    On a CPU ranks share cores, so one shard may have more slots than there are cores: there are never fewer than the
    largest needs, unless somebody says so. Raises UsageError where a shard needs more than there are.
    """
    largest = max(shards, key=lambda shard: shard.devices, default=None)
    if about.on_gpus and slots is not None:
        raise UsageError(f"--slots are of a CPU, and this run is about {about.gpu}: its GPUs are counted")
    if about.on_gpus:
        found = tuple(gpu.uuid for gpu in machine.gpus if gpu.name == about.gpu)
        if not found:
            raise UsageError(f"this run is about {about.gpu}, and there is none in this machine; found: {machine}")
    else:
        found = tuple(str(number) for number in range(slots or max(machine.cores, largest.devices if largest else 1)))
    if largest is not None and largest.devices > len(found):
        more = sum(shard.devices > len(found) for shard in shards) - 1
        others = f" (and {counted(more, 'other shard')})" if more else ""
        raise UsageError(
            f"{largest}{others} needs {device_name(about, largest.devices)}, and this node has {len(found)}; plan without "
            + (
                "it (-k, --deselect), or run on several nodes"
                if about.on_gpus
                else "it (-k, --deselect), or give more --slots"
            )
        )
    return found
