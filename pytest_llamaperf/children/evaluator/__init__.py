"""lm-eval in a process of its own: it asks, and whoever started it has the engine answer.

lm-eval calls a model and waits. Here that model is a `Correspondent`: it hands what it was asked to the parent, as the
answer to one command, and gets the reply with the next:

    evaluate {...}        -> {"score": ...}, {"generate": ...} or {"done": ...}
    reply {"values": ...} -> the same, until it is done

So any engine can be evaluated, and lm-eval, torch and datasets are imported neither where pytest runs nor where it serves.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

Report = Callable[..., None]


def open_driver(report: Report) -> Driver:
    return Driver(report)


class Driver:
    """`evaluate`, then `reply` until the answer is `done`."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._asked: queue.Queue[dict[str, Any]] = queue.Queue()
        self._replies: queue.Queue[Any] = queue.Queue()
        self._work: threading.Thread | None = None

    def handle(self, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        match name:
            case "evaluate" if self._work is None:
                self._work = threading.Thread(target=self._evaluate, args=(arguments,), daemon=True)
                self._work.start()
            case "reply" if self._work is not None:
                self._replies.put(arguments["values"])
            case _:
                raise ValueError(f"{name!r} is no command, or not now")
        found = self._asked.get()
        if "failed" in found:
            raise found["failed"]
        if "done" in found:
            self._work = None
        return found

    def close(self) -> None:
        """What still waits for a reply ends with the process."""

    def _evaluate(self, arguments: Mapping[str, Any]) -> None:
        try:
            from .evaluation import evaluated

            self._asked.put({"done": evaluated(self._ask, self._report, **arguments)})
        except BaseException as problem:  # noqa: BLE001  told to the parent by the thread that talks with it
            self._asked.put({"failed": problem})

    def _ask(self, question: dict[str, Any]) -> Any:
        self._asked.put(question)
        return self._replies.get()
