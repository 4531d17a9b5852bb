"""Observations out of a database."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, func, select

from pytest_llamaperf.history.database import Database
from pytest_llamaperf.history.schema import PARTS, cases, observations, origins, runs
from pytest_llamaperf.observations import Observation, uncollected

# What observations are chosen by.
COLUMNS = {
    **{part: cases.c[part] for part in PARTS},
    "case": cases.c.name,
    "run": runs.c.name,
    "metric": observations.c.metric,
    "outcome": observations.c.outcome,
    **{name: origins.c[name] for name in ("source", "harness", "version")},
}


@dataclass(frozen=True)
class _Origin:
    source: str
    harness: str
    version: str | None
    versions: Mapping[str, str]
    settings: Mapping[str, Any]
    machine: Mapping[str, Any]


def found(database: Database, wanted: Mapping[str, Sequence[str]]) -> list[Observation]:
    """Those of which each part is one of the names, in the order in which they came."""
    query = (
        select(observations)
        .join_from(observations, cases)
        .join(runs)
        .join(origins)
        .where(*_are(wanted))
        .order_by(observations.c.id)
    )
    with uncollected(), database.reading() as connection:
        case_names, run_names = (
            {number: name for number, name in connection.execute(select(table.c.id, table.c.name))}
            for table in (cases, runs)
        )
        shared = {row.id: _origin(row) for row in connection.execute(select(origins))}
        return list(_observations(connection.execute(query).all(), case_names, run_names, shared))


def counted_by_case(database: Database, wanted: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """How many of those there are of each case."""
    query = (
        select(cases.c.name, func.count())
        .join_from(observations, cases)
        .join(runs)
        .join(origins)
        .where(*_are(wanted))
        .group_by(cases.c.name)
    )
    with database.reading() as connection:
        return {name: number for name, number in connection.execute(query)}


def _are(wanted: Mapping[str, Sequence[str]]) -> Iterator[ColumnElement[bool]]:
    return (COLUMNS[part].in_(names) for part, names in wanted.items())


def _observations(
    rows: Iterable[Sequence[Any]],
    case_names: Mapping[int, str],
    run_names: Mapping[int, str],
    shared: Mapping[int, _Origin],
) -> Iterator[Observation]:
    """Rows as tuples and fields by place, in the orders of both: of 100,000 every name is a hundredth of a second."""
    nothing: dict[str, Any] = {}
    for (
        _,
        run,
        case,
        place,
        metric,
        unit,
        better,
        value,
        low,
        high,
        at,
        restarts,
        operators,
        outcome,
        reference,
    ) in rows:
        origin = shared[place]
        yield Observation(
            case_names[case], metric, unit, better, origin.source, value, run_names[run], origin.harness, origin.version,
            at, tuple(map(float, restarts.split())) if restarts else (), low, high, origin.versions, origin.settings,
            origin.machine, json.loads(operators) if operators else nothing, outcome, reference,
        )  # fmt: skip


def _origin(row: Row[Any]) -> _Origin:
    return _Origin(
        row.source,
        row.harness,
        row.version,
        json.loads(row.versions),
        json.loads(row.settings),
        json.loads(row.machine),
    )
