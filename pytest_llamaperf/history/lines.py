"""A line of values that may be compared with one another, and the breaks between lines.

Values of two sources, harnesses, units or kinds of machine are on two lines: no change is told, and no step looked for,
from one line to the next.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pytest_llamaperf.fingerprints import kind_of
from pytest_llamaperf.history.versions import version_order
from pytest_llamaperf.observations import Observation


@dataclass(frozen=True)
class Line:
    """Of one case and metric, by version and time. `machine` names processor and GPUs, where they are known, and how GPUs are
    set where that is unusual: see `fingerprints.kind_of`."""

    case: str
    metric: str
    source: str
    harness: str
    unit: str
    better: str
    machine: str
    observations: tuple[Observation, ...]

    @property
    def levels(self) -> tuple[tuple[Observation, ...], ...]:
        """What was observed of each version, or, where nobody says the version, each observation alone."""
        groups: list[list[Observation]] = []
        for each in self.observations:
            if (
                groups
                and each.version is not None
                and version_order(each.version) == version_order(groups[-1][0].version)
            ):
                groups[-1].append(each)
            else:
                groups.append([each])
        return tuple(map(tuple, groups))


def lines_of(observations: Iterable[Observation]) -> tuple[Line, ...]:
    """By case and metric, and of each the line first that began first. Predictions and publications stand on their own."""
    found: dict[tuple[str, str, str, str, str, str, str], list[Observation]] = {}
    several = tuple(observations)
    # Many observations share the machine of their run.
    machines = {
        number: kind_of(machine) for number, machine in {id(one.machine): one.machine for one in several}.items()
    }
    for each in several:
        key = (each.case, each.metric, each.source, each.harness, each.unit, each.better, machines[id(each.machine)])
        found.setdefault(key, []).append(each)
    for line in found.values():
        line.sort(key=lambda each: (version_order(each.version), each.when or ""))
    lines = (Line(*key, tuple(line)) for key, line in found.items())
    return tuple(sorted(lines, key=_place))


def differing(one: Line, other: Line) -> tuple[str, ...]:
    """What keeps two lines of a case and metric apart: the names of it."""
    names = ("source", "harness", "unit", "better", "machine")
    return tuple(name for name in names if getattr(one, name) != getattr(other, name))


def _place(line: Line) -> tuple[object, ...]:
    first = line.observations[0]
    return (line.case, line.metric, line.source, version_order(first.version), first.when or "", line.harness)
