"""The processes that one host answers for: how to find them all, wherever they went, and how to end them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

OWNER = "LLAMAPERF_OWNER"  # in the environment of every process of a host, its number
_MARK = uuid.uuid4().hex  # with which numbers of this process's hosts begin
GRACE = 2.0  # seconds between asking processes to end and ending them
PATIENCE = 10.0  # seconds for the kernel to end them: a GPU's driver may hold one that long
STACK = 0.2  # seconds for a process to write down where it is
GLANCE = 0.01  # seconds

_ENDED = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


@dataclass(frozen=True)
class Exit:
    """How a process ended: by a signal, or with an exit status; neither, where somebody else was told."""

    signal: int | None = None
    status: int | None = None

    def __str__(self) -> str:
        if self.signal is not None:
            return f"signal {self.signal}{_signal_name(self.signal)}"
        return "ended, and nobody was told how" if self.status is None else f"exit status {self.status}"


class Family:
    """A process that leads a session, and all who came from it.

    Found by session, by descent, and by the owner's mark in the environment they were started with; who was found once
    is remembered. One of the three is left of a process that opened a session of its own, dropped its environment, or
    lost its parent; only of one that did all three, before anybody looked, none is.

    The leader may be reaped only after `end`: until then its number is no other process's. Say so with `forget_leader`.
    Without a leader, as where it ended long ago, they are found by the mark alone, which stands in `variable`.
    """

    def __init__(self, leader: int | None, owner: str, *, variable: str = OWNER) -> None:
        self._leader = leader
        self._owner, self._variable = owner, variable
        self._seen: set[psutil.Process] = set()

    def alive(self) -> list[psutil.Process]:
        """Zombies do not count: they hold nothing any more."""
        self._seen.update(self._descendants())
        self._seen.update(process for process in psutil.process_iter() if self._is_marked(process))
        self._seen = {process for process in self._seen if _runs(process)}
        return sorted(self._seen, key=lambda process: int(process.pid))

    def exit_by(self, until: float = 0.0) -> Exit | None:
        """How the leader ended, waiting for it up to a point of time (time.monotonic); None if it still runs."""
        while (found := self._exit()) is None and time.monotonic() < until:
            time.sleep(GLANCE)
        return found

    def _exit(self) -> Exit | None:
        """Without reaping it."""
        if self._leader is None:
            return Exit()
        try:
            found = os.waitid(os.P_PID, self._leader, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # where SIGCHLD is ignored, which some launchers do, nobody is told
            return Exit()
        if found is None:
            return None
        if found.si_code == os.CLD_EXITED:
            return Exit(status=found.si_status)
        return Exit(signal=found.si_status)

    def show_stack(self) -> None:
        """Make the leader write to its log where it is: `children/program.py` does so on this signal."""
        if self._leader is not None and self.exit_by() is None:
            os.kill(self._leader, signal.SIGUSR1)
            time.sleep(STACK)

    def end(self) -> None:
        """Ask all to end, then end them. Gives up after GRACE + PATIENCE; `alive` tells whom the kernel would not end."""
        if not self.alive():
            return
        self._send(signal.SIGTERM)
        patience = time.monotonic() + GRACE
        while self.alive() and time.monotonic() < patience:
            time.sleep(GLANCE)
        patience = time.monotonic() + PATIENCE
        while self.alive() and time.monotonic() < patience:  # again and again: they may start others meanwhile
            self._send(signal.SIGKILL)
            time.sleep(GLANCE)

    def forget_leader(self) -> None:
        self._leader = None

    def cpu_seconds(self) -> float:
        """User and system time of those alive; what ended took its own with it."""
        total = 0.0
        for process in self.alive():
            with contextlib.suppress(psutil.Error):
                used = process.cpu_times()
                total += used.user + used.system
        return total

    def _send(self, number: signal.Signals) -> None:
        """To the group as one, so that nobody slips through by forking, and to each who left it."""
        found = self.alive()  # looked up before the leader may end, and with it the trace of who descended from it
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self._leader is not None:
                os.killpg(self._leader, number)
        for process in found:
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if os.getpgid(process.pid) != self._leader:
                    process.send_signal(number)

    def _descendants(self) -> Iterator[psutil.Process]:
        if self._leader is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                yield from psutil.Process(self._leader).children(recursive=True)

    def _is_marked(self, process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error, OSError):  # ended meanwhile, or another user's
            if self._leader is not None and os.getsid(process.pid) == self._leader:
                return True
            return bool(process.environ().get(self._variable) == self._owner)
        return False


def new_owner() -> str:
    """A number for a host of this process."""
    return f"{_MARK}-{uuid.uuid4().hex}"


def is_ours(pid: int) -> bool:
    """Whether a process is this one, descends from it, or was started by one of its hosts."""
    with contextlib.suppress(psutil.Error, OSError):
        process = psutil.Process(pid)
        if pid == os.getpid() or any(parent.pid == os.getpid() for parent in process.parents()):
            return True
        return str(process.environ().get(OWNER, "")).startswith(_MARK)
    return False


def memory_kills() -> int:
    """How often the kernel has ended a process for want of memory since it started; 0 where it does not tell."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running()) and process.status() not in _ENDED
    except psutil.Error:
        return False


def _signal_name(number: int) -> str:
    """In brackets; real-time signals have none."""
    try:
        return f" ({signal.Signals(number).name})"
    except ValueError:
        return ""
