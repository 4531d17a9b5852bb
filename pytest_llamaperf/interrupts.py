"""SIGINT and SIGTERM: both end a session in good order, and neither cuts off what has to be done whole."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

ENDING = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """While it listens, SIGTERM raises KeyboardInterrupt as Ctrl-C does; by default it would end the process at once.

    `first` is the name of the signal that came first, None where none came.
    """

    def __init__(self) -> None:
        self.first: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def listen(self) -> None:
        """A signal that is ignored, as nohup has it, stays so. May be called twice; outside the main thread it does nothing."""
        if self._before or not _in_main_thread():
            return
        for number in ENDING:
            before = signal.getsignal(number)
            if before not in (signal.SIG_IGN, None):  # None: of a program that is not Python, and could not be restored
                self._before[number] = before
                signal.signal(number, self._heard)

    def stop(self) -> None:
        """What was there before listens again."""
        while self._before:
            signal.signal(*self._before.popitem())

    def _heard(self, number: int, frame: FrameType | None) -> NoReturn:
        name = signal.Signals(number).name
        self.first = self.first or name
        raise KeyboardInterrupt(name)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """SIGINT and SIGTERM wait: people press Ctrl-C twice, and schedulers follow one signal with another.

    Handlers are replaced, not signals blocked: a blocked signal would be taken by another thread, and heard all the same.
    """
    if not _in_main_thread():  # where handlers never run
        yield
        return
    heard: list[int] = []
    before = {number: signal.getsignal(number) for number in ENDING}
    for number, handler in before.items():
        if callable(handler):
            signal.signal(number, lambda number, frame: heard.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            if callable(handler):
                signal.signal(number, handler)
        for each in heard:
            signal.raise_signal(each)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
