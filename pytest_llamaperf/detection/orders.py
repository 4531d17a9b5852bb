"""Orders and their answers: which builds of an engine to start next, and what each fresh start gave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pytest_llamaperf.detection.readings import Cell, Side


@dataclass(frozen=True)
class Restart:
    """One engine, started fresh and measured: a reading of every one of its cells, in base units."""

    engine: str
    side: Side
    readings: Mapping[Cell, float]


@dataclass(frozen=True)
class Order:
    """Which builds of an engine to start next, in this order: it cancels what drifts (A B, then B A)."""

    engine: str
    sides: tuple[Side, ...]


def pair_sides(pairs: int) -> list[Side]:
    """A B, B A, A B, ..."""
    turn = [Side.BASELINE, Side.CANDIDATE]
    return [side for pair in range(pairs) for side in (turn if pair % 2 == 0 else turn[::-1])]
