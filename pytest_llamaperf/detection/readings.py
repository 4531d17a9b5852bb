"""Readings: one value of one metric from one restart of an engine, and what is compared of them.

Everything is compared as logarithms, turned so that more is worse: a difference of 0.03 is a loss of 3 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from pytest_llamaperf.errors import EngineError, UsageError
from pytest_llamaperf.metrics import Better, Metric
from pytest_llamaperf.wording import counted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]
    Flags = NDArray[np.bool_]


class Side(StrEnum):
    BASELINE = "baseline"
    CANDIDATE = "candidate"


class Cell(NamedTuple):
    """One metric of one case. `engine` names what is restarted: its cells get their readings together.

    A tuple, for there may be a hundred thousand.
    """

    engine: str
    case: str
    metric: Metric

    def __str__(self) -> str:
        return f"{self.case} {self.metric}"


Readings = Mapping[Cell, Sequence[float]]  # in base units, one for each restart, in order


def refuse_unlike(baseline: Readings, candidate: Readings, least: Mapping[Side, int]) -> None:
    """Raises UsageError for a cell on one side only or with too few restarts, EngineError for what is no quantity."""
    if not baseline and not candidate:
        raise UsageError("nothing to compare: there are no readings")
    for side, have, other in ((Side.BASELINE, baseline, candidate), (Side.CANDIDATE, candidate, baseline)):
        if alone := [cell for cell in have if cell not in other]:
            raise UsageError(
                f"{counted(len(alone), 'cell')} measured for the {side} only ({some(alone)}): "
                "baseline and candidate are compared on the same cases and metrics"
            )
    for side, have in ((Side.BASELINE, baseline), (Side.CANDIDATE, candidate)):
        if few := [cell for cell, values in have.items() if len(values) < least[side]]:
            fewest = min(len(have[cell]) for cell in few)
            raise UsageError(
                f"{counted(len(few), 'cell')} of the {side} with too few restarts ({some(few)}): "
                f"there are {fewest}, {least[side]} are needed"
            )
        for cell, values in have.items():
            refuse_impossible(cell, side, values)


def refuse_impossible(cell: Cell, side: Side, values: Iterable[float]) -> None:
    """Raises EngineError for zero, negative and non-finite values: no engine takes no time."""
    for value in values:
        if not 0 < value < math.inf:
            raise EngineError(f"{cell}: the {side} gave {value:g}; a reading is a finite number above 0")


def logarithms(cell: Cell, values: Iterable[float]) -> list[float]:
    """More is worse, whichever way is better for the metric."""
    return [_sign(cell) * math.log(value) for value in values]


def logarithms_of_all(cells: Sequence[Cell], rows: Sequence[Sequence[float]]) -> Numbers:
    """As `logarithms`, of the readings of many cells at once: a row for each, filled up with NaN."""
    import numpy as np

    return np.array([_sign(cell) for cell in cells])[:, None] * np.log(matrix(rows))


def logarithm_of(cell: Cell, loss: float) -> float:
    """Of a relative loss: 3 % less of what is better when higher, 3 % more of what is better when lower."""
    return -math.log1p(-loss) if cell.metric.better is Better.HIGHER else math.log1p(loss)


def _sign(cell: Cell) -> float:
    return 1.0 if cell.metric.better is Better.LOWER else -1.0


def loss_of(cell: Cell, logarithm: float) -> float:
    """The relative loss again; negative for a gain."""
    return -math.expm1(-logarithm) if cell.metric.better is Better.HIGHER else math.expm1(logarithm)


def matrix(rows: Sequence[Sequence[float]]) -> Numbers:
    """Rows of different lengths as one array, filled up with NaN."""
    import numpy as np

    lengths = set(map(len, rows))
    if len(lengths) == 1:
        (length,) = lengths
        return np.fromiter(chain.from_iterable(rows), float, len(rows) * length).reshape(len(rows), length)
    filled = np.full((len(rows), max(lengths)), np.nan)
    for number, row in enumerate(rows):
        filled[number, : len(row)] = row
    return filled


def some(cells: Iterable[Cell]) -> str:
    first, *more = sorted(map(str, cells))
    return ", ".join([first, *more[:2], *(["..."] if more[2:] else [])])
