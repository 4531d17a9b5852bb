"""Observations out of a database."""

from __future__ import annotations

import functools
import json
import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from sqlalchemy import ColumnElement, Row, func, select

from pytest_llamaperf.history.database import Damaged, Database, as_text
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
            {number: as_text(name) for number, name in connection.execute(select(table.c.id, table.c.name))}
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
        return {as_text(name): number for name, number in connection.execute(query)}


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
    known: set[tuple[type, ...]] = set()
    for row in rows:
        if (kinds := tuple(map(type, row))) not in known:
            if not all(map(operator.contains, _KINDS, kinds)):
                raise Damaged(f"observation {row[0]} is of other kinds of values")
            known.add(kinds)
        (
            number,
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
        ) = row
        try:
            origin = shared[place]
            values = tuple(map(float, restarts.split())) if restarts else ()
            found = Observation(
                case_names[case], metric, unit, better, origin.source, value, run_names[run], origin.harness,
                origin.version, at, values, low, high, origin.versions, origin.settings, origin.machine,
                _mapping(operators) if operators else nothing, outcome, reference,
            )  # fmt: skip
        except (KeyError, ValueError):
            raise Damaged(f"observation {number} speaks of nothing that is there") from None
        if not all(map(math.isfinite, (value, low or 0.0, high or 0.0, *values))):
            raise Damaged(f"observation {number} is no number")
        yield found


_TEXT, _NUMBER, _NOTHING = frozenset({str}), frozenset({float, int}), frozenset({type(None)})
# Of each column of `observations`, in its order: what SQLite and PostgreSQL give for what was written.
_KINDS = (
    *[frozenset({int})] * 4, *[_TEXT] * 3, _NUMBER, *[_NUMBER | _NOTHING] * 2, *[_TEXT | _NOTHING] * 5,
)  # fmt: skip


def _origin(row: Row[Any]) -> _Origin:
    version = None if row.version is None else as_text(row.version)
    return _Origin(
        as_text(row.source),
        as_text(row.harness),
        version,
        _shared(row.versions),
        _mapping(row.settings),
        _shared(row.machine),
    )


@functools.lru_cache(maxsize=1024)
def _shared(text: object) -> Mapping[str, Any]:
    """Of one text the same mapping, which comparing then looks at once."""
    return _mapping(text)


def _mapping(text: object) -> dict[str, Any]:
    """Raises Damaged for what is no object of JSON."""
    try:
        told = json.loads(as_text(text), parse_constant=_refused)
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise Damaged(f"{str(text)[:40]!r} stands where an object should")
    return told


def _refused(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
