"""Runs one driver for the process that started it: `python program.py DRIVER`, under any Python from 3.10 on.

Commands come in on stdin, events go out where stdout was, one JSON object a line:

    {"id": 1, "command": "load", "arguments": {...}}

    {"progress": {"text": "layers", "done": 3, "total": 30}}      any number before an answer; total may be null
    {"id": 1, "result": ...}
    {"id": 1, "failed": {"type": "RuntimeError", "message": "...", "traceback": "..."}}

`versions` is answered for every driver, without asking it: what the process has loaded, see `libraries`.

The first event is {"ready": {"python": "3.11.7", "pid": 123}}, or a `failed` with id null.

DRIVER is a module or package beside this file, or the path of a .py file. It offers `open_driver(report)`, which returns
a Driver; `report(text, done=0, total=None)` says how far the work is. The command `close`, or the end of stdin, closes
the driver and ends the process. Needs the standard library only.
"""

from __future__ import annotations

import ctypes
import faulthandler
import importlib
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

PROGRESS_INTERVAL = 0.1  # seconds
PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


class Driver(Protocol):
    def handle(self, command: str, arguments: dict[str, Any]) -> Any:
        """The command's result, as JSON can hold it. Whatever it raises is reported as its failure."""

    def close(self) -> None: ...


class NotJson(Exception):
    """A result that JSON cannot hold, such as NaN."""


class Events:
    """What the parent is told, on a descriptor that nothing else knows of."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._progress_due = 0.0

    def send(self, event: dict[str, Any]) -> None:
        """Raises NotJson, and has sent nothing then."""
        try:
            text = json.dumps(event, allow_nan=False)
        except (ValueError, TypeError, RecursionError) as problem:
            raise NotJson(f"the result cannot be written as JSON: {problem}") from problem
        unsent = memoryview(text.encode("ascii") + b"\n")
        while unsent:
            unsent = unsent[os.write(self._descriptor, unsent) :]

    def send_failure(self, identity: int | None, problem: Exception) -> None:
        text = traceback.format_exc()
        print(text, file=sys.stderr, flush=True)
        self.send(
            {"id": identity, "failed": {"type": type(problem).__name__, "message": str(problem), "traceback": text}}
        )

    def report(self, text: str, done: int = 0, total: int | None = None) -> None:
        """For loops that are quicker than anybody reads: most calls send nothing, the last one (done == total) does."""
        now = time.monotonic()
        if done == total or now >= self._progress_due:
            self._progress_due = now + PROGRESS_INTERVAL
            self.send({"progress": {"text": text, "done": done, "total": total}})


def private_streams() -> tuple[int, int]:
    """Descriptors for commands and events that children do not inherit.

    What prints or reads by accident, libraries and their children, gets stderr and the null device instead.
    """
    commands, events = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return commands, events


def die_with_parent(commands: int) -> None:
    """An engine must not hold its GPUs when the process that would end it was killed itself."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    # If it died before that call, nobody holds the other end any more.
    parent = select.poll()
    parent.register(commands, select.POLLIN)
    if any(found == select.POLLHUP for _, found in parent.poll(0)):
        os._exit(1)


def opened(name: str, events: Events) -> Driver:
    here = Path(__file__).parent
    path = Path(name) if name.endswith(".py") else here / name
    sys.path[:0] = dict.fromkeys([str(path.parent), str(here)])
    driver: Driver = importlib.import_module(path.stem).open_driver(events.report)
    return driver


def serve(driver: Driver, commands: Iterable[bytes], events: Events) -> None:
    for line in commands:
        asked = json.loads(line)
        closing = asked["command"] == "close"
        result = None
        try:
            if closing:
                driver.close()
            elif asked["command"] == "versions":
                result = importlib.import_module("libraries").loaded()
            else:
                result = driver.handle(asked["command"], asked["arguments"])
            events.send({"id": asked["id"], "result": result})
        except Exception as problem:  # noqa: BLE001 - what it means is for the parent to judge
            events.send_failure(asked["id"], problem)
        if closing:
            return
    driver.close()


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, who ends this process if it wants
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)  # how the parent finds out where an engine hangs
    commands, descriptor = private_streams()
    die_with_parent(commands)
    events = Events(descriptor)
    try:
        driver = opened(sys.argv[1], events)
    except Exception as problem:  # noqa: BLE001 - what it means is for the parent to judge
        events.send_failure(None, problem)
        return 1
    version = ".".join(str(number) for number in sys.version_info[:3])
    events.send({"ready": {"python": version, "pid": os.getpid()}})
    with os.fdopen(commands, "rb") as lines:
        serve(driver, lines, events)
    # Everything is answered and closed. What libraries do at exit may wait for ever: MPI for workers that are gone.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
