"""Who holds memory of GPUs while no engine of ours should."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pytest_llamaperf.gpu_watch.looking import memory_used, processes_on
from pytest_llamaperf.gpu_watch.strangers import Strangers, told
from pytest_llamaperf.hardware import devices
from pytest_llamaperf.hosting.failures import EngineFailure, FailureKind
from pytest_llamaperf.hosting.phases import Phase
from pytest_llamaperf.wording import amount

OTHERS_MAY_HOLD = 2 * 2**30  # bytes of a GPU before an engine opens: contexts of the driver and of monitors
FREEING = 30.0  # seconds in which memory of an engine that has ended comes back
MAY_STAY = 256 * 2**20  # bytes of a GPU that a driver may keep for itself after its first engine
GLANCE = 0.5  # seconds between two looks


@dataclass(frozen=True)
class Holding:
    """Bytes in use of one GPU, and the processes that compute on it with what each holds, where the driver tells."""

    used: int
    processes: Mapping[int, int | None]


def holdings(hardware: str) -> dict[int, Holding]:
    """By number, of GPUs of a catalog name. Raises NVMLError."""
    with devices(hardware) as found:
        return {index: Holding(memory_used(handle), processes_on(handle)) for index, handle in found.items()}


def found_free(hardware: str, patience: float) -> dict[int, Holding]:
    """What GPUs hold before an engine opens, after waiting for what has just ended.

    Raises EngineFailure where somebody holds too much of one, NVMLError.
    """
    until = time.monotonic() + patience
    while True:
        before = holdings(hardware)
        held = [
            f"GPU {index} has {amount(found.used, 'B')} in use before the engine starts{_by(found.processes)}"
            for index, found in before.items()
            if found.used > OTHERS_MAY_HOLD
        ]
        if not held:
            return before
        if time.monotonic() >= until:
            raise EngineFailure(FailureKind.UNSTABLE, Phase.LOAD, "; ".join(held))
        time.sleep(GLANCE)


def given_back(hardware: str, before: Mapping[int, Holding], strangers: Strangers, patience: float) -> None:
    """Wait until an engine that was closed holds nothing any more.

    Raises EngineFailure: a leak, with what is still held by whom, or `unstable` where a stranger has come; NVMLError.
    """
    began = time.monotonic()
    while True:
        now = holdings(hardware)
        kept = {index: extra for index in now if (extra := _extra(now[index], before.get(index)))}
        if not kept:
            return
        if time.monotonic() >= began + patience:
            break
        time.sleep(GLANCE)
    waited = f"{time.monotonic() - began:.1f} s after the engine closed"
    # What came meanwhile is a stranger where its number says so; in a container nobody can tell.
    came = {pid for index in kept for pid in now[index].processes if strangers.name(pid)}
    kind = FailureKind.UNSTABLE if came else FailureKind.LEAK
    facts = [
        f"GPU {index} holds {amount(extra, 'B')} ({extra:,} bytes) more than before, {waited}"
        f"{_by(_new(now[index], before.get(index)))}"
        for index, extra in kept.items()
    ]
    raise EngineFailure(kind, Phase.CLOSE, "; ".join(facts))


def _extra(now: Holding, before: Holding | None) -> int:
    """Bytes that an engine still holds; 0 for what a driver may keep."""
    extra = now.used - (before.used if before else 0)
    return extra if extra > MAY_STAY else 0


def _new(now: Holding, before: Holding | None) -> Collection[int]:
    return [pid for pid in now.processes if before is None or pid not in before.processes]


def _by(processes: Collection[int]) -> str:
    return f": {', '.join(told(pid) for pid in processes)}" if processes else ""
