"""What an engine is doing, and how long it may take for it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from pytest_llamaperf.errors import UsageError, nearest
from pytest_llamaperf.traces import percentile
from pytest_llamaperf.wording import counted

SETTING = "llamaperf_deadlines"


class Phase(StrEnum):
    LOAD = "load"
    RUN = "run"
    CLOSE = "close"


# A learned deadline is this many times what nearly all earlier calls took, never below the floor, and of so many at least.
# The floor of a load is the default: with a cold cache it may take many times as long as with a warm one.
MARGIN, LEAST_LEARNED = 3.0, 3
FLOORS = {Phase.LOAD: 1800.0, Phase.RUN: 300.0, Phase.CLOSE: 60.0}


@dataclass(frozen=True)
class Deadlines:
    """Seconds for the start and for each call of a phase. Raises UsageError for what is no positive number.

    `origins` says where a number comes from that is not the default.
    """

    load: float = 1800.0
    run: float = 1800.0
    close: float = 60.0
    origins: Mapping[Phase, str] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        for phase in Phase:
            if not (math.isfinite(self.of(phase)) and self.of(phase) > 0):
                raise UsageError(f"{SETTING}: {phase} is {self.of(phase):g}; it takes a positive number of seconds")

    @classmethod
    def parse(cls, text: str) -> Deadlines:
        """From `load=60 run=30 close=5`; what is left out keeps its default. Raises UsageError for anything else."""
        known = [phase.value for phase in Phase]
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
        return cls(**given, origins={Phase(name): f"from {SETTING}" for name in given})

    def learned(self, earlier: Mapping[Phase, Sequence[float]], where: str) -> Deadlines:
        """With the larger of a floor and three times the 99th percentile of what earlier calls took.

        A phase that somebody gave a number keeps it, and so does one of which too little is known.
        """
        seconds: dict[str, float] = {}
        origins = dict(self.origins)
        for phase, took in earlier.items():
            if phase in self.origins or len(took) < LEAST_LEARNED:
                continue
            usual = percentile(took, 0.99)
            seconds[phase.value] = max(FLOORS[phase], MARGIN * usual)
            origins[phase] = (
                f"learned from {where}: {MARGIN:g} times the {usual:.3g} s that is the 99th percentile of "
                f"{counted(len(took), 'earlier opening')}, and {FLOORS[phase]:g} s at least"
            )
        return dataclasses.replace(self, **seconds, origins=origins)

    def origin(self, phase: Phase) -> str:
        return self.origins.get(phase, "the default")

    def of(self, phase: Phase) -> float:
        match phase:
            case Phase.LOAD:
                return self.load
            case Phase.RUN:
                return self.run
            case Phase.CLOSE:
                return self.close
