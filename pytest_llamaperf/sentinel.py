"""Is the machine what it was? A short fixed piece of work around every restart: where it takes longer, so does all else.

Two builds are compared only on a machine on which this work takes what it took at best in the session.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Self

from pytest_llamaperf.cases import CPU
from pytest_llamaperf.engines import Surroundings
from pytest_llamaperf.hosting.failures import EngineFailure, FailureKind
from pytest_llamaperf.hosting.host import Host
from pytest_llamaperf.hosting.phases import Phase

# Piece of work -> seconds it took.
Probe = Callable[[], Mapping[str, float]]

# How many times as long it may take. A GPU with its clocks up repeats to a percent; cores that are shared with others do not.
GPU_TOLERANCE, CPU_TOLERANCE = 1.1, 1.6
PATIENCE = 60.0  # seconds in which a machine may calm down
REPEATS = 8  # of each piece, of which the fastest counts: what disturbs one disturbs no long work

DRIVER = "gpu_probe"


class Sentinel:
    """Remembers the best the machine did, and refuses to go on where it does much worse for `patience` seconds."""

    def __init__(self, probe: Probe, tolerance: float, *, patience: float) -> None:
        self._probe, self._tolerance, self._patience = probe, tolerance, patience
        self._best: dict[str, float] = {}

    @classmethod
    def of(cls, hardware: str, surroundings: Surroundings) -> Self:
        if hardware == CPU:
            return cls(cpu_probe, CPU_TOLERANCE, patience=PATIENCE)
        return cls(lambda: gpu_probe(surroundings), GPU_TOLERANCE, patience=PATIENCE)

    def check(self) -> None:
        """Raises EngineFailure of the kind `unstable` when the machine does not become what it was in time."""
        until = time.monotonic() + self._patience
        while worst := self._slowest(self._probe()):
            if time.monotonic() >= until:
                raise EngineFailure(FailureKind.UNSTABLE, Phase.LOAD, worst)
            time.sleep(min(1.0, self._patience / 10))

    def _slowest(self, seconds: Mapping[str, float]) -> str | None:
        """The piece of work that takes too long, for people; None where all is well."""
        for piece, took in seconds.items():
            self._best[piece] = min(took, self._best.get(piece, took))
        times, piece = max((took / self._best[piece], piece) for piece, took in seconds.items())
        if times <= self._tolerance:
            return None
        return (
            f"{piece}, a fixed piece of work, takes {times:.2f} times as long as at best in this session "
            f"({seconds[piece] * 1e3:.3g} ms); up to {self._tolerance:g} is tolerated"
        )


def cpu_probe() -> dict[str, float]:
    """A loop of this interpreter and a copy of 32 MiB: one core's clock, and the memory that all cores share."""
    source = bytearray(32 * 2**20)
    pieces: dict[str, Callable[[], object]] = {
        "a loop": lambda: sum(range(300_000)),
        "a copy in memory": lambda: bytes(source),
    }
    return {name: min(_seconds(work) for _ in range(REPEATS)) for name, work in pieces.items()}


def gpu_probe(surroundings: Surroundings, device: str = "cuda") -> dict[str, float]:
    """A matrix product and a copy on every GPU in sight, by a process that is gone when the engine opens.

    Raises EngineFailure.
    """
    host = Host(DRIVER, log=surroundings.logs / "gpu-probe.log", deadlines=surroundings.deadlines)
    try:
        found: dict[str, float] = host.call("probe", {"device": device, "repeats": REPEATS}, Phase.RUN)
        return found
    finally:
        host.kill()


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
