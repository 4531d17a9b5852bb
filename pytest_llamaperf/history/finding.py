"""Observations out of a database."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, select

from pytest_llamaperf.history.database import Database
from pytest_llamaperf.history.schema import PARTS, cases, observations, origins, runs
from pytest_llamaperf.observations import Observation

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


def found(database: Database, wanted: Mapping[str, Sequence[str]]) -> Iterator[Observation]:
    """Those of which each part is one of the names, in the order in which they came."""
    query = (
        select(observations, cases.c.name, runs.c.name)
        .join_from(observations, cases)
        .join(runs)
        .join(origins)
        .where(*(COLUMNS[part].in_(names) for part, names in wanted.items()))
        .order_by(observations.c.id)
    )
    with database.reading() as connection:
        shared = {row.id: _origin(row) for row in connection.execute(select(origins))}
        rows = connection.execute(query).all()
    nothing: dict[str, Any] = {}
    # As tuples, in the order of the columns: of 100,000 rows every attribute is a tenth of a second.
    for (
        _,
        _,
        _,
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
        case,
        run,
    ) in rows:
        origin = shared[place]
        yield Observation(
            case=case,
            metric=metric,
            unit=unit,
            better=better,
            source=origin.source,
            value=value,
            run=run,
            harness=origin.harness,
            version=origin.version,
            when=at,
            values=tuple(map(float, restarts.split())) if restarts else (),
            low=low,
            high=high,
            versions=origin.versions,
            settings=origin.settings,
            machine=origin.machine,
            operators=json.loads(operators) if operators else nothing,
            outcome=outcome,
            reference=reference,
        )


def _origin(row: Row[Any]) -> _Origin:
    return _Origin(
        row.source,
        row.harness,
        row.version,
        json.loads(row.versions),
        json.loads(row.settings),
        json.loads(row.machine),
    )
