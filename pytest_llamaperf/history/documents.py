"""A history as JSON: lines, each with its observations, its steps and its alert."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, fields
from typing import Any

from pytest_llamaperf.history.alerts import alert_of
from pytest_llamaperf.history.lines import Line, lines_of
from pytest_llamaperf.history.steps import steps_of
from pytest_llamaperf.observations import Observation

# 1: lines, with observations, steps and alert.
SCHEMA = 1
# What a line says for all of its observations, and what each says itself: of its machine a line has the kind alone.
_SHARED = ("case", "metric", "source", "harness", "unit", "better")
_OWN = tuple(field.name for field in fields(Observation) if field.name not in (*_SHARED, "blind"))


def document(observations: Iterable[Observation]) -> dict[str, Any]:
    """Values of two lines are not to be compared."""
    return {"schema": SCHEMA, "lines": [_of(line) for line in lines_of(observations)]}


def _of(line: Line) -> dict[str, Any]:
    found = alert_of(line)
    return {
        **{name: getattr(line, name) for name in _SHARED},
        "machine": line.machine,
        "observations": [{name: getattr(each, name) for name in _OWN} for each in line.observations],
        "steps": [asdict(step) for step in steps_of(line)],
        "alert": None if found is None else {"loss": found.loss, "noticed": found.noticed},
    }
