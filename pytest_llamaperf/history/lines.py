"""A line of values that may be compared with one another, and the breaks between lines.

Values of two sources, harnesses, units or kinds of machine are on two lines: no change is told, and no step looked for,
from one line to the next.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pytest_llamaperf.history.versions import version_order
from pytest_llamaperf.observations import Observation


@dataclass(frozen=True)
class Line:
    """Of one case and metric, by version and time. `machine` names processor and GPUs, where they are known."""

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
    for each in observations:
        key = (each.case, each.metric, each.source, each.harness, each.unit, each.better, _machine(each))
        found.setdefault(key, []).append(each)
    for several in found.values():
        several.sort(key=lambda each: (version_order(each.version), each.when or ""))
    lines = (Line(*key, tuple(several)) for key, several in found.items())
    return tuple(sorted(lines, key=_place))


def differing(one: Line, other: Line) -> tuple[str, ...]:
    """What keeps two lines of a case and metric apart: the names of it."""
    names = ("source", "harness", "unit", "better", "machine")
    return tuple(name for name in names if getattr(one, name) != getattr(other, name))


def _place(line: Line) -> tuple[object, ...]:
    first = line.observations[0]
    return (line.case, line.metric, line.source, version_order(first.version), first.when or "", line.harness)


def _machine(one: Observation) -> str:
    """What decides how fast a machine is, not which of several alike it was, nor its driver."""
    gpus = one.machine.get("gpus")
    products = (
        sorted(str(gpu.get("product")) for gpu in gpus if isinstance(gpu, dict))
        if isinstance(gpus, list | tuple)
        else []
    )
    named = [str(one.machine[key]) for key in ("processor", "name") if one.machine.get(key)]
    return ", ".join([*named, *(f"{products.count(product)} x {product}" for product in dict.fromkeys(products))])
