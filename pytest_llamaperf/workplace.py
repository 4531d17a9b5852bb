"""The machine of a session that measures: its own from its first engine to its end, and cleared of what the dead left."""

from __future__ import annotations

import sys
from collections.abc import Callable

from pytest_llamaperf.engines import TEMPORARY
from pytest_llamaperf.errors import EngineError
from pytest_llamaperf.gpu_watch.clocks import LockedClocks, unlock
from pytest_llamaperf.gpu_watch.gpus import WatchedGpus
from pytest_llamaperf.hosting.failures import EngineFailure, FailureKind
from pytest_llamaperf.hosting.phases import Phase
from pytest_llamaperf.leftovers import sweep
from pytest_llamaperf.reservations import CPU_NAME, Reservation, Taken, cannot_be_locked, folder, reserve


class Workplace:
    """The GPUs of a session, or the CPU where it measures on none.

    `lock_clocks` are MHz, or None to leave clocks alone; another session is waited for up to `wait` seconds, which `tell` hears.
    """

    def __init__(
        self,
        hardware: str,
        gpus: WatchedGpus | None,
        *,
        lock_clocks: int | None,
        wait: float,
        tell: Callable[[str], None],
    ) -> None:
        self._hardware, self._gpus, self._lock_clocks = hardware, gpus, lock_clocks
        self._wait, self._tell = wait, tell
        self._taken: Reservation | EngineError | None = None

    def take(self) -> None:
        """Raises EngineError, again each time, where it cannot be had."""
        if self._taken is None:
            try:
                self._taken = self._reserved()
            except EngineError as problem:
                self._taken = problem
        if isinstance(self._taken, EngineError):
            raise self._taken

    def give_back(self) -> None:
        """With its clocks unlocked; where they cannot be, that is told, and the next session tries again."""
        if not isinstance(self._taken, Reservation):
            return
        try:
            if self._lock_clocks is not None:
                unlock(self._hardware, folder())
        except EngineError as problem:
            print(f"ERROR: {problem}", file=sys.stderr)
        finally:
            self._taken.release()

    def _reserved(self) -> Reservation:
        root = folder()
        names = [CPU_NAME] if self._gpus is None else self._gpus.uuids
        try:
            reservation = reserve(names, root, patience=self._wait, tell=self._tell)
        except Taken as taken:
            raise EngineFailure(FailureKind.BUSY, Phase.LOAD, str(taken)) from None
        except OSError as problem:
            raise EngineError(cannot_be_locked(root, problem)) from None
        try:
            if reservation.alone:  # whose there was is dead
                sweep(TEMPORARY)
                if self._gpus is not None:
                    unlock(self._hardware, root)
            if self._lock_clocks is not None:
                LockedClocks(self._hardware, self._lock_clocks, root).lock()
        except BaseException:
            reservation.release()
            raise
        return reservation
