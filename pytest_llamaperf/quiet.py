"""Did the machine do other work meanwhile? On a CPU that is shared, nothing disturbs a measurement as much."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Self

# Cores that others may use on average before a round counts as disturbed.
TOLERATED_CORES = 0.2


@dataclass(frozen=True)
class CpuReading:
    """Seconds: of a steady clock, of all processors at work, and of this process with everything it started."""

    clock: float
    machine: float
    ours: float

    @classmethod
    def now(cls) -> Self:
        import psutil

        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # What a hypervisor gives to somebody else is missing here like what another process takes.
        machine = sum(times[:8]) - idle
        return cls(time.monotonic(), machine, _family_seconds())

    def other_cores(self, earlier: CpuReading) -> float:
        """Processor cores that everybody else used on average since the earlier reading."""
        elapsed = self.clock - earlier.clock
        return max(0.0, (self.machine - earlier.machine) - (self.ours - earlier.ours)) / elapsed if elapsed > 0 else 0.0


def _family_seconds() -> float:
    """User and system time of this process and its descendants, those that have ended included."""
    import psutil

    me = psutil.Process()
    total = 0.0
    for process in [me, *me.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue  # its time is now in children_user of the one that started it
        total += times.user + times.system + times.children_user + times.children_system
    return total
