"""Observations into a database: a run as a whole, once, and never another of the same name."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Column, Connection, Table, delete, func, insert, select, update

from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.history.database import Database, as_text
from pytest_llamaperf.history.schema import PARTS, cases, observations, origins, runs
from pytest_llamaperf.observations import Observation

_AT_ONCE = 5_000  # rows in one statement
Fields = dict[str, Any]


@dataclass(frozen=True)
class Added:
    """Number of observations of each run: of those that are new, and of those that were there already."""

    new: Mapping[str, int]
    known: Mapping[str, int]


def digests(database: Database) -> dict[str, str]:
    """Of the content of every run, by its name."""
    with database.reading() as connection:
        return _digests(connection)


def remove(connection: Connection, run: str) -> int | None:
    """How many observations the run had, None where there is no such run. What it alone had said is gone with it."""
    found = connection.execute(select(runs.c.id).where(runs.c.name == run)).scalar()
    if found is None:
        return None
    number = connection.execute(delete(observations).where(observations.c.run == found)).rowcount
    connection.execute(delete(runs).where(runs.c.id == found))
    for table, column in ((cases, observations.c.case), (origins, observations.c.origin)):
        connection.execute(delete(table).where(table.c.id.not_in(select(column))))
    return number


@dataclass
class _Arriving:
    """A run that is being written; `id` is None of one that is there already, of which only the content is compared.

    `content` is the sum of the digests of its observations, in whatever order they come.
    """

    id: int | None
    number: int = 0
    content: int = 0

    def count(self, observation: str) -> None:
        self.number += 1
        self.content += int.from_bytes(hashlib.sha256(observation.encode()).digest())

    @property
    def digest(self) -> str:
        return f"{self.content % 2**256:064x}"


class Writer:
    """What one transaction adds. There is no other writer meanwhile: ids of what is new follow those that are there.

    `elsewhere` are digests of runs that are kept in another place.
    """

    def __init__(self, connection: Connection, elsewhere: Mapping[str, str]) -> None:
        self._connection = connection
        self._before = {**elsewhere, **_digests(connection)}
        self._runs: dict[str, _Arriving] = {}
        self._cases = _Shared(connection, cases, cases.c.name)
        self._origins = _Shared(connection, origins, origins.c.digest)
        self._next_run = _next_id(connection, runs)
        self._next = _next_id(connection, observations)

    def write(self, observed: Iterable[Observation]) -> None:
        """Raises UsageError for a value that is no finite number, which no comparison could use."""
        arriving = iter(observed)
        while several := list(itertools.islice(arriving, _AT_ONCE)):
            rows = [row for each in several if (row := self._row(each)) is not None]
            self._cases.insert_new()
            self._origins.insert_new()
            if rows:
                self._connection.execute(insert(observations), rows)

    def finish(self, file: str | None) -> Added:
        """Raises UsageError for a run that is there with other content."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        for name, run in self._runs.items():
            if run.id is None and run.digest != self._before[name]:
                raise UsageError(
                    f"run {name!r} is in the history already, with other values: one of the two was changed or cut off; "
                    f"to replace it, `llamaperf history forget {name!r}` first"
                )
            if run.id is not None:
                values = {"digest": run.digest, "number": run.number, "imported": now, "file": file}
                self._connection.execute(update(runs).where(runs.c.id == run.id).values(**values))
        return Added(
            {name: run.number for name, run in self._runs.items() if run.id is not None},
            {name: run.number for name, run in self._runs.items() if run.id is None},
        )

    def _row(self, one: Observation) -> Fields | None:
        """None of a run that is there already."""
        if not all(math.isfinite(value) for value in (one.value, one.low or 0, one.high or 0, *one.values)):
            raise UsageError(f"run {one.run!r}: {one.metric} of {one.case} is {one.value}, which is no finite number")
        run = self._runs.get(one.run) or self._arriving(one.run)
        origin, row = _origin(one), _values(one)
        run.count(json.dumps([one.case, *origin.values(), *row.values()]))
        if run.id is None:
            return None
        row |= {"id": self._next, "run": run.id}
        row["case"] = self._cases.id_of(one.case, lambda: {"name": one.case, **_parts(one.case)})
        row["origin"] = self._origins.id_of(
            tuple(origin.values()), lambda: {"digest": _digest(tuple(origin.values())), **origin}, _digest
        )
        self._next += 1
        return row

    def _arriving(self, name: str) -> _Arriving:
        if name in self._before:
            run = self._runs[name] = _Arriving(None)
            return run
        run = self._runs[name] = _Arriving(self._next_run)
        self._next_run += 1
        self._connection.execute(insert(runs).values(id=run.id, name=name, digest="", number=0, imported=""))
        return run


class _Shared:
    """Rows of a table that observations share, known by a column. `key` makes that of what they are asked for by."""

    def __init__(self, connection: Connection, table: Table, column: Column[Any]) -> None:
        self._connection, self._table = connection, table
        self._there = {name: number for name, number in connection.execute(select(column, table.c.id))}
        self._ids: dict[object, int] = {}
        self._next = _next_id(connection, table)
        self._new: list[Fields] = []

    def id_of(self, asked: object, row: Callable[[], Fields], key: Callable[[Any], str] = str) -> int:
        if asked not in self._ids:
            name = key(asked)
            if name not in self._there:
                self._there[name] = self._next
                self._new.append({"id": self._next, **row()})
                self._next += 1
            self._ids[asked] = self._there[name]
        return self._ids[asked]

    def insert_new(self) -> None:
        if self._new:
            self._connection.execute(insert(self._table), self._new)
            self._new = []


def _digests(connection: Connection) -> dict[str, str]:
    return {as_text(name): as_text(digest) for name, digest in connection.execute(select(runs.c.name, runs.c.digest))}


def _next_id(connection: Connection, table: Table) -> int:
    return int(connection.execute(select(func.coalesce(func.max(table.c.id), 0))).scalar_one()) + 1


def _values(one: Observation) -> Fields:
    return {
        "metric": one.metric,
        "unit": one.unit,
        "better": one.better,
        "value": one.value,
        "low": one.low,
        "high": one.high,
        "at": one.when,
        "restarts": " ".join(map(repr, one.values)) or None,
        "operators": _json(one.operators) if one.operators else None,
        "outcome": one.outcome,
        "reference": one.reference,
    }


def _origin(one: Observation) -> Fields:
    return {
        "source": one.source,
        "harness": one.harness,
        "version": one.version,
        "versions": _json(one.versions),
        "settings": _json(one.settings),
        "machine": _json(one.machine),
    }


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True) if value else "{}"


def _digest(origin: tuple[str | None, ...]) -> str:
    return hashlib.sha256(json.dumps(origin).encode()).hexdigest()


def _parts(case: str) -> Fields:
    """By which cases are looked for; of an id of another form only the first is known."""
    parts = case.split("/")
    if len(parts) != len(PARTS):
        parts = [parts[0], *[""] * (len(PARTS) - 1)]
    return dict(zip(PARTS, parts, strict=True))
