"""History: did a metric change its level over the last releases or nights? An advice to look, never a verdict."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_llamaperf.detection.readings import Cell, Side, logarithms, loss_of, refuse_impossible
from pytest_llamaperf.errors import UsageError

RECENT, BEFORE = 3, 20
LEAST = 0.03  # relative: smaller steps are not worth a page
CHANCE = 1e-4  # of an alert without a change, for normal noise
# Variances of medians of 3 and of 20 normal values, as shares of the variance of one.
VARIANCE = 0.4487 + math.pi / 2 / 20


@dataclass(frozen=True)
class Alert:
    """loss: relative, by medians; noticed: what a change has to exceed, both as shares."""

    cell: Cell
    loss: float
    noticed: float

    def __str__(self) -> str:
        return (
            f"{self.cell} got {self.loss * 100:.1f} % worse: median of the last {RECENT} against the {BEFORE} before "
            f"(noticed from {self.noticed * 100:.1f} %); confirm it on fresh restarts"
        )


def alert(cell: Cell, values: Sequence[float]) -> Alert | None:
    """Oldest first, one value for each night or release.

    Raises UsageError for fewer than 23 values, EngineError for impossible ones.
    """
    if len(values) < RECENT + BEFORE:
        raise UsageError(f"{cell}: a history alert needs {RECENT + BEFORE} values, there are {len(values)}")
    refuse_impossible(cell, Side.CANDIDATE, values)
    from scipy.special import stdtrit

    logs = logarithms(cell, values)
    before, recent = logs[-RECENT - BEFORE : -RECENT], logs[-RECENT:]
    center = statistics.median(before)
    noise = 1.4826 * statistics.median(abs(value - center) for value in before)
    noticed = max(math.log1p(LEAST), float(stdtrit(BEFORE - 1, 1 - CHANCE)) * noise * math.sqrt(VARIANCE))
    step = statistics.median(recent) - center
    return Alert(cell, loss_of(cell, step), loss_of(cell, noticed)) if step > noticed else None
