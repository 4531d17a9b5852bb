"""What a run cost: how long engines held GPUs, and what they did meanwhile. Of a CPU, how long they held processors."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Self

from pytest_llamaperf.cases import CPU
from pytest_llamaperf.engines import EngineSpec
from pytest_llamaperf.wording import counted

LEAST = 0.0001  # hours that are told


class Activity(StrEnum):
    LOAD = "load"  # with a checkpoint that has to be made first
    WARM_UP = "warm up"
    MEASURED = "measured"
    ASKED = "asked"  # questions and accuracy tasks
    BY_TESTS = "by tests"  # an engine that a test opened and used by hand
    CLOSE = "close"
    IDLE = "idle"  # open while another engine had its turn, or between two rounds


@dataclass(frozen=True)
class EngineUse:
    """One engine from the beginning of its load to the end of its close.

    engine  kind, model, recipe, layout and hardware
    held    seconds that its processors or GPUs were held, whatever it did
    spent   seconds of it by activity; the rest was idle
    """

    engine: str
    hardware: str
    gpus: int
    held: float
    spent: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Raises KeyError, TypeError or ValueError for what is none."""
        use = cls(**{**data, "spent": {str(Activity(name)): float(spent) for name, spent in data["spent"].items()}})
        if not all(map(math.isfinite, (use.held, use.gpus, *use.spent.values()))):
            raise ValueError(f"the time of {use.engine} is no number")
        return use

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def hours(self) -> dict[str, float]:
        """GPU-hours (of a CPU: processor-hours, a processor for each rank) by activity, idle included."""
        idle = max(0.0, self.held - sum(self.spent.values()))
        seconds = {**self.spent, Activity.IDLE.value: idle}
        return {activity: self.gpus * spent / 3600 for activity, spent in seconds.items()}


class Holding:
    """An engine that holds its GPUs now."""

    def __init__(self, spec: EngineSpec, on_end: Callable[[EngineUse], None]) -> None:
        self._spec, self._on_end = spec, on_end
        self._began = time.monotonic()
        self._spent: dict[str, float] = {}
        self._ended = False

    @contextlib.contextmanager
    def doing(self, activity: Activity) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._spent[activity] = self._spent.get(activity, 0.0) + time.monotonic() - began

    def end(self) -> None:
        """May be called twice."""
        if self._ended:
            return
        self._ended = True
        spec, held = self._spec, time.monotonic() - self._began
        spent = {str(activity): seconds for activity, seconds in self._spent.items()}
        self._on_end(EngineUse(str(spec), spec.hardware, spec.layout.gpus, held, spent))


class Ledger:
    """Every engine of a session that was opened and ended; `on_end` is told of each at once."""

    def __init__(self) -> None:
        self.uses: list[EngineUse] = []
        self.on_end: Callable[[EngineUse], None] = lambda use: None

    def hold(self, spec: EngineSpec) -> Holding:
        return Holding(spec, self._note)

    def _note(self, use: EngineUse) -> None:
        self.uses.append(use)
        self.on_end(use)


def account_lines(uses: Sequence[EngineUse]) -> list[str]:
    """For people: the sum, then a line for each engine, the dearest first; nothing where no engine was open."""
    lines = []
    for name, chosen in (
        ("GPU-hours", [use for use in uses if use.hardware != CPU]),
        ("processor-hours (a processor for each rank; no GPU was used)", [use for use in uses if use.hardware == CPU]),
    ):
        if not chosen:
            continue
        engines: dict[str, list[EngineUse]] = {}
        for use in chosen:
            engines.setdefault(use.engine, []).append(use)
        lines.append(f"{name} held by engines: {_hours(sum(map(_total, chosen)))}")
        for engine, found in sorted(engines.items(), key=lambda each: -sum(map(_total, each[1]))):
            lines.append(
                f"  {engine}: {_hours(sum(map(_total, found)))} in {counted(len(found), 'opening')}: {_by_activity(found)}"
            )
    return lines


def _total(use: EngineUse) -> float:
    return sum(use.hours().values())


def _by_activity(uses: Sequence[EngineUse]) -> str:
    hours = {activity: sum(use.hours().get(activity, 0.0) for use in uses) for activity in Activity}
    return (
        ", ".join(f"{activity} {_hours(spent)}" for activity, spent in hours.items() if spent >= LEAST)
        or "too short to tell"
    )


def _hours(hours: float) -> str:
    """Two decimals, more where there would be nothing to see."""
    return f"{hours:,.2f}" if hours >= 1 else f"{hours:.2g}" if hours >= LEAST else f"under {LEAST:g}"
