"""What an engine is doing, and how long it may take for it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from enum import StrEnum

from pytest_llamaperf.errors import UsageError, nearest

SETTING = "llamaperf_deadlines"


class Phase(StrEnum):
    LOAD = "load"
    RUN = "run"
    CLOSE = "close"


@dataclass(frozen=True)
class Deadlines:
    """Seconds for the start and for each call of a phase. Raises UsageError for what is no positive number."""

    load: float = 1800.0
    run: float = 1800.0
    close: float = 60.0

    def __post_init__(self) -> None:
        for phase in Phase:
            if not (math.isfinite(self.of(phase)) and self.of(phase) > 0):
                raise UsageError(f"{SETTING}: {phase} is {self.of(phase):g}; it takes a positive number of seconds")

    @classmethod
    def parse(cls, text: str) -> Deadlines:
        """From `load=60 run=30 close=5`; what is left out keeps its default. Raises UsageError for anything else."""
        known = [field.name for field in fields(cls)]
        given: dict[str, float] = {}
        for word in text.split():
            name, _, number = word.partition("=")
            if name not in known:
                raise UsageError(f"{SETTING}: {name!r} is no phase of an engine; {nearest(name, known)}")
            if name in given:
                raise UsageError(f"{SETTING}: {name} is given twice")
            try:
                given[name] = float(number)
            except ValueError:
                raise UsageError(
                    f"{SETTING}: {word!r} is not {name} and its seconds; write for example {name}=600"
                ) from None
        return cls(**given)

    def of(self, phase: Phase) -> float:
        match phase:
            case Phase.LOAD:
                return self.load
            case Phase.RUN:
                return self.run
            case Phase.CLOSE:
                return self.close
