"""How long engines took: of every opening the longest call of each phase. What earlier runs took says what is too long."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_llamaperf.hosting.phases import Deadlines, Phase

# Of each engine and phase; the newest are kept.
MOST = 100


class Durations:
    """By engine and phase, in seconds, the oldest first: those that earlier runs left, and those of this session."""

    def __init__(self) -> None:
        self._earlier: dict[str, dict[Phase, list[float]]] = {}
        self._now: dict[str, dict[Phase, list[float]]] = {}
        self._where = ""

    def learn(self, told: Mapping[str, Any], where: str) -> None:
        """From `to_dict` of an earlier run, kept in `where`. Raises AttributeError, TypeError or ValueError for anything else."""
        earlier = {
            str(engine): {Phase(phase): _seconds(values) for phase, values in phases.items()}
            for engine, phases in told.items()
        }
        self._earlier, self._where = earlier, where

    def deadlines(self, engine: str, given: Deadlines) -> Deadlines:
        """Those that were given, with what earlier runs teach where nobody asked for a number."""
        return given.learned(self._earlier.get(engine, {}), self._where)

    def add(self, engine: str, longest: Mapping[Phase, float]) -> None:
        for phase, seconds in longest.items():
            self._now.setdefault(engine, {}).setdefault(phase, []).append(seconds)

    def to_dict(self) -> dict[str, dict[str, list[float]]]:
        """For run.json, from which the next run learns."""
        return {
            engine: {
                phase.value: both[-MOST:]
                for phase in Phase
                if (both := [v for known in (self._earlier, self._now) for v in known.get(engine, {}).get(phase, ())])
            }
            for engine in {**self._earlier, **self._now}
        }


def _seconds(values: Sequence[Any]) -> list[float]:
    found = [float(value) for value in values]
    if not all(math.isfinite(value) and value >= 0 for value in found):
        raise ValueError("a duration is no number of seconds")
    return found
