"""Whole lines to and from a child process, never waiting beyond a point of time.

Points of time are of time.monotonic, in seconds.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from io import FileIO

CHUNK = 1 << 20  # bytes asked for at once; a pipe of Linux gives 64 KiB
GLANCE = 0.25  # seconds between looks at whether the child still runs


class Expired(Exception):
    """The time was up."""


class Cut(Exception):
    """No more will come; `rest` is a line that had begun."""

    def __init__(self, rest: bytes = b"") -> None:
        self.rest = rest
        super().__init__(f"cut off after {rest[:80]!r}")


class Channel:
    """Takes over an unbuffered writing and an unbuffered reading end of pipes.

    The end of the stream alone does not tell that the child has ended: a process that it forked may hold it open. So
    `runs` is asked now and then.
    """

    def __init__(self, writing: FileIO, reading: FileIO, runs: Callable[[], bool]) -> None:
        self._writing, self._reading, self._runs = writing, reading, runs
        self._received = bytearray()
        self._searched = 0  # bytes of it in which no line ends
        os.set_blocking(writing.fileno(), False)  # a child that does not read must not stop us

    def send(self, line: bytes, until: float) -> None:
        """Raises Expired, or Cut when nobody reads any more."""
        unsent = memoryview(line + b"\n")
        while unsent:
            self._wait(self._writing, select.POLLOUT, until)
            try:
                unsent = unsent[os.write(self._writing.fileno(), unsent) :]
            except BrokenPipeError:
                raise Cut from None

    def receive(self, until: float) -> bytes:
        """The next line, without its end. Raises Expired, or Cut when there will be none."""
        while (end := self._received.find(b"\n", self._searched)) < 0:
            self._searched = len(self._received)
            self._wait(self._reading, select.POLLIN, until)
            chunk = os.read(self._reading.fileno(), CHUNK)
            if not chunk:
                raise Cut(bytes(self._received))
            self._received += chunk
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        self._searched = 0
        return line

    def close(self) -> None:
        self._writing.close()
        self._reading.close()

    def _wait(self, end: FileIO, wanted: int, until: float) -> None:
        """Until reading or writing would not block; the end of a stream counts as such."""
        ready = select.poll()  # unlike select.select, for descriptors of any number
        ready.register(end.fileno(), wanted)
        while (left := until - time.monotonic()) > 0:
            runs = self._runs()  # asked before looking: what it wrote last is then in the pipe
            if ready.poll(min(left, GLANCE) * 1000 if runs else 0):
                return
            if not runs:
                raise Cut(bytes(self._received))
        raise Expired
