"""History: what was measured, predicted and published of every version, to be asked for.

Run files are the truth, the database is a copy of them. The figures that come with this project are beside it, in every
history, and in none of the databases.
"""

from __future__ import annotations

import difflib
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Row, func, select

from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.history.database import Database, as_text, connect, default_location, in_memory
from pytest_llamaperf.history.finding import COLUMNS, counted_by_case, found
from pytest_llamaperf.history.schema import cases, observations, origins
from pytest_llamaperf.history.versions import same_version, version_order
from pytest_llamaperf.history.writing import Added, Writer, digests, remove
from pytest_llamaperf.importing import observations_in
from pytest_llamaperf.observations import Observation
from pytest_llamaperf.wording import printable

SEED = Path(__file__).parent / "published.csv"
_FEW = 30  # names that an error message lists


@dataclass(frozen=True)
class Group:
    """How much there is of a model on some hardware, from a source, with the versions in order."""

    model: str
    hardware: str
    source: str
    cases: int
    values: int
    versions: tuple[str, ...]


@dataclass(frozen=True)
class Excerpt:
    """What was found of the first cases; `cases` and `values` count all that there is."""

    observations: tuple[Observation, ...]
    cases: int
    values: int


class History:
    """The published figures of `seed` and the user's `own`, asked together; what is added goes into `own`."""

    def __init__(self, seed: Database, own: Database | None) -> None:
        self._seed, self._own = seed, own

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._own is not None:
            self._own.close()

    @property
    def _databases(self) -> tuple[Database, ...]:
        return (self._seed,) if self._own is None else (self._seed, self._own)

    def find(self, **wanted: str | Sequence[str]) -> tuple[Observation, ...]:
        """Observations of which each named part is one of those wanted, by case, metric and version, oldest first.

        Parts are `hardware`, `engine`, `model`, `recipe`, `layout`, `work`, `case`, `metric`, `source`, `harness`,
        `version`, `run` and `outcome`. Raises UsageError for a name of which there is nothing, with the nearest ones.
        """
        chosen = self._chosen(wanted)
        observed = [each for database in self._databases for each in found(database, chosen)]
        if not observed:
            self._refuse_unknown(chosen)
        # Places instead of versions: comparing two of those takes longer than reading a row.
        orders = {version: version_order(version) for version in {each.version for each in observed}}
        places = {order: n for n, order in enumerate(sorted(set(orders.values())))}
        place = {version: places[order] for version, order in orders.items()}
        series: dict[tuple[str, str], list[Observation]] = {}
        for each in observed:
            series.setdefault((each.case, each.metric), []).append(each)
        for several in series.values():
            several.sort(key=lambda each: (place[each.version], each.when or ""))
        return tuple(chain.from_iterable(series[key] for key in sorted(series)))

    def beginning(self, most: int, **wanted: str | Sequence[str]) -> Excerpt:
        """As `find`, of the first cases that have at most so many values together, and at least of one.

        What is left out is counted by the database and not read.
        """
        chosen = self._chosen(wanted)
        numbers: Counter[str] = Counter()
        for database in self._databases:
            numbers.update(counted_by_case(database, chosen))
        taken = list(accumulate(numbers[case] for case in sorted(numbers)))
        first = sorted(numbers)[: max(bisect_right(taken, most), 1)]
        parts = wanted if len(first) == len(numbers) else {**wanted, "case": first}
        return Excerpt(self.find(**parts), len(numbers), numbers.total())

    def series(self, case: str, metric: str) -> tuple[Observation, ...]:
        """Everything of one metric of one case, by version and time. Raises UsageError as `find` does."""
        return self.find(case=case, metric=metric)

    def of_version(self, version: str) -> tuple[Observation, ...]:
        """However it is written: 0.17 is 0.17.0. Raises UsageError as `find` does."""
        return self.find(version=version)

    def of_run(self, run: str) -> tuple[Observation, ...]:
        """Of the id of a run or a name of a publication. Raises UsageError as `find` does."""
        return self.find(run=run)

    def known(self, part: str) -> tuple[str, ...]:
        """All names of a part that there are."""
        names: set[str] = set()
        for database in self._databases:
            with database.reading() as connection:
                found = connection.execute(select(COLUMNS[part]).distinct())
                names |= {as_text(name) for (name,) in found if name is not None}
        return tuple(sorted(names, key=version_order) if part == "version" else sorted(names))

    def groups(self) -> tuple[Group, ...]:
        """What there is, counted; versions are those that were said."""
        of_case = (cases.c.model, cases.c.hardware, origins.c.source, origins.c.version, cases.c.id.label("case"))
        query = (
            select(*of_case, func.count().label("values"))
            .join_from(observations, cases)
            .join(origins)
            .group_by(*of_case)
        )
        counted: dict[tuple[str, str, str], list[Row[Any]]] = {}
        for database in self._databases:
            with database.reading() as connection:
                for row in connection.execute(query):
                    names = (as_text(row.model), as_text(row.hardware), as_text(row.source))
                    as_text(row.version or "")
                    counted.setdefault(names, []).append(row)
        return tuple(
            Group(
                *key,
                cases=len({row.case for row in rows}),
                values=sum(row[-1] for row in rows),
                versions=tuple(sorted({row.version for row in rows if row.version is not None}, key=version_order)),
            )
            for key, rows in sorted(counted.items())
        )

    def add(self, observed: Iterable[Observation], file: str | None = None) -> Added:
        """All of them or, after an exception, none; a run that is there already is compared and stays as it is.

        Raises UsageError for a run that is there with other content, and where there is no database to add to.
        """
        if self._own is None:
            raise UsageError("there is no database to add to: open the history with create=True")
        with self._own.writing() as connection:
            writer = Writer(connection, digests(self._seed))
            writer.write(observed)
            return writer.finish(file)

    def forget(self, run: str) -> int:
        """Remove a run, and say how many observations it had. Raises UsageError for one that is not there."""
        if run in digests(self._seed):
            raise UsageError(f"{run!r} comes with this package and cannot be forgotten")
        if self._own is None:
            raise UsageError(f"unknown run {run!r}; nothing has been imported yet")
        with self._own.writing() as connection:
            number = remove(connection, run)
        if number is None:
            raise UsageError(f"unknown run {run!r}; {_nearest(run, digests(self._own))}")
        return number

    def _chosen(self, wanted: Mapping[str, str | Sequence[str]]) -> dict[str, list[str]]:
        chosen = {part: [names] if isinstance(names, str) else list(names) for part, names in wanted.items()}
        if "version" in chosen:
            chosen["version"] = self._as_written(chosen["version"])
        return chosen

    def _as_written(self, versions: Iterable[str]) -> list[str]:
        """Every spelling of a version that there is; of one that is unknown its own."""
        there = self.known("version")
        return [
            spelling
            for wanted in versions
            for spelling in ([known for known in there if same_version(known, wanted)] or [wanted])
        ]

    def _refuse_unknown(self, chosen: Mapping[str, Iterable[str]]) -> None:
        for part, names in chosen.items():
            there = self.known(part)
            for name in names:
                if name not in there:
                    raise UsageError(f"nothing of {part} {name!r} in the history; {_nearest(name, there)}")


def open_history(location: str | None = None, *, create: bool = False) -> History:
    """The history at a path or URL; by default at $LLAMAPERF_HISTORY, else in a file among the user's data.

    With `create` it is made where there is none. Without, there are the published figures alone; raises UsageError where
    the place was named, and for a database that cannot be used.
    """
    own = connect(location or default_location(), create=create)
    if own is None and location is not None:
        raise UsageError(f"{location}: there is no history; `llamaperf history import FILES --db {location}` makes one")
    return History(_published(), own)


def _published() -> Database:
    """The figures that come with this project, in memory."""
    database = in_memory()
    with database.writing() as connection:
        writer = Writer(connection, {})
        writer.write(observations_in(SEED))
        writer.finish(None)
    return database


def _nearest(name: str, known: Iterable[str]) -> str:
    """The nearest names, and all of them, in their order, where those are few."""
    names = [printable(each) for each in known]
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    suggestion = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    told = ", ".join(names if len(names) <= _FEW else [*names[:3], "..."])
    return f"{suggestion}known: {told}" if names else "there are none"
