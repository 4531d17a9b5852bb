"""The alert of `detection.history` for a line: did its last runs get worse than those before?"""

from __future__ import annotations

from pytest_llamaperf.detection.history import BEFORE, RECENT, Alert, alert
from pytest_llamaperf.detection.readings import Cell
from pytest_llamaperf.history.lines import Line
from pytest_llamaperf.measurements import Source
from pytest_llamaperf.metrics import Better, Metric


def alert_of(line: Line) -> Alert | None:
    """None for a line without change, of too few runs, that nobody measured, or with values that have no logarithm."""
    values = [each.value for each in line.observations]
    if line.source != Source.MEASURED or len(values) < RECENT + BEFORE or min(values) <= 0:
        return None
    return alert(Cell("", line.case, Metric(line.metric, line.unit, Better(line.better), "")), values)
