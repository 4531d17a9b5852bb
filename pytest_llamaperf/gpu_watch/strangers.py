"""Which processes on a GPU are not this session's.

NVML counts processes as the kernel does outside of containers. Drivers differ in whether they translate the number for
who asks from inside one, so there it tells nothing by itself: what was on a GPU before the engine opened is a stranger,
and so is what comes while an open engine works. See docs/decisions/0022-fit-gpus.md.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from pathlib import Path

import psutil

from pytest_llamaperf.hosting.processes import is_ours

# The number of the first PID namespace of a machine, fixed in Linux (PROC_PID_INIT_INO).
_FIRST = "pid:[4026531836]"


def numbers_are_ours() -> bool:
    """Whether processes have the numbers here that the kernel knows them by: this is no container of its own."""
    with contextlib.suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink()) == _FIRST
    return False


class Strangers:
    """Tells processes apart. `before` are those that were there before the engine opened."""

    def __init__(self, before: Collection[int] = (), *, exact: bool | None = None) -> None:
        self._before = frozenset(before)
        self._exact = numbers_are_ours() if exact is None else exact
        self._known: dict[int, str | None] = {}

    def name(self, pid: int, *, late: bool = False) -> str | None:
        """What to call a stranger; None for a process of this session, or one that nobody can tell whose it is.

        `late`: it came while an engine worked that was open before.
        """
        if pid not in self._known:
            self._known[pid] = self._told(pid, late)
        return self._known[pid]

    def _told(self, pid: int, late: bool) -> str | None:
        if is_ours(pid):
            return None
        if self._exact:
            # One that ended since the driver named it is gone, whose ever it was.
            return told(pid) if psutil.pid_exists(pid) else None
        return f"process {pid}, as the driver counts," if late or pid in self._before else None


def told(pid: int) -> str:
    """A process as people know it; never its arguments, which may hold secrets."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return f"process {pid} ({process.name()} of {process.username()})"
    return f"process {pid}"
