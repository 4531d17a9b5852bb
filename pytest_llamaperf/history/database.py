"""A database as this project uses it: SQLite or PostgreSQL through SQLAlchemy, one writer at a time, errors as sentences."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import Connection, Engine, event, insert, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.history import schema
from pytest_llamaperf.wording import shown_path

PATH = "LLAMAPERF_HISTORY"
PATIENCE = 30  # seconds that a writer waits for another one
_LOCK = 0x11A3A  # of PostgreSQL's advisory locks the one of a history's writer
_POSTGRESQL = "postgresql+psycopg://USER@HOST/DATABASE"


def default_location() -> str:
    """$LLAMAPERF_HISTORY, a URL or a path; else a file among the user's data, for run files may be gone some day."""
    if told := os.environ.get(PATH):
        return told
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return str(Path(data).expanduser() / "pytest-llamaperf" / "history.sqlite")


class Damaged(Exception):
    """A row says what no history writes. SQLite keeps text where a number belongs, and has no checksums of its pages."""


def as_text(name: object) -> str:
    """Raises Damaged for a name that is none."""
    if not isinstance(name, str):
        raise Damaged(f"a name is {str(name)[:40]!r}")
    return name


class Database:
    """Connections to one database; `name` is what messages call it, without a password."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine, self.name = engine, name

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction in which every statement sees the same moment, as SQLite has it anyway."""
        level = {"isolation_level": "REPEATABLE READ"} if self._engine.dialect.name == "postgresql" else {}
        with self._told(), self._engine.connect().execution_options(**level) as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is kept as a whole or, after an exception, not at all; others wait for its end."""
        with self._told(), self._engine.connect().execution_options(writing=True) as connection, connection.begin():
            if connection.dialect.name == "postgresql":
                connection.execute(sqlalchemy.text(f"SET LOCAL lock_timeout = '{PATIENCE}s'"))
                connection.execute(sqlalchemy.text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
            yield connection

    def close(self) -> None:
        self._engine.dispose()

    def is_history(self) -> bool:
        with self.reading() as connection:
            return sqlalchemy.inspect(connection).has_table(schema.about.name)

    def let_read_while_writing(self) -> None:
        """SQLite's write-ahead log, which stays switched on; where a file system has none, readers wait."""
        if self._engine.dialect.name == "sqlite":
            with self._told(), contextlib.closing(self._engine.raw_connection()) as connection:
                connection.cursor().execute("PRAGMA journal_mode = WAL")

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as problem:
            told = str(problem.orig).strip().split("\n")[0]
            if "locked" in told or "lock timeout" in told:
                raise UsageError(f"{self.name}: another process is writing to it for long; try again later") from None
            raise UsageError(f"{self.name}: the history cannot be used: {told}") from None
        except SQLAlchemyError as problem:
            raise UsageError(f"{self.name}: the history cannot be used: {str(problem).splitlines()[0]}") from None
        except (Damaged, UnicodeDecodeError) as problem:
            what = problem if isinstance(problem, Damaged) else "a text is not UTF-8"
            raise UsageError(
                f"{self.name}: is a damaged history: {what}; import the files of its runs into another one"
            ) from None
        except UnicodeEncodeError as problem:
            raise UsageError(f"{self.name}: {problem.object[:40]!r} cannot be kept: it is no Unicode") from None


def connect(location: str, *, create: bool) -> Database | None:
    """A history at a URL or path, made there if it may be; None where there is none.

    Raises UsageError for a database that cannot be used, is no history, or of a newer version.
    """
    url = _url(location)
    name = shown_path(Path(url.database or "")) if url.drivername == "sqlite" else url.render_as_string()
    if url.drivername == "sqlite":
        path = Path(url.database or "")
        if not path.exists() and not create:
            return None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise UsageError(
                f"{name}: cannot be made: {problem.strerror}; name another place by --db or ${PATH}"
            ) from None
    database = Database(_engine(url), name)
    try:
        there = database.is_history()
        if create and not there:
            _make(database)
            there = True
        if there:
            _check(database)
    except BaseException:
        database.close()
        raise
    if not there:
        database.close()
    return database if there else None


def in_memory() -> Database:
    """Of this process alone, and gone with it."""
    engine = sqlalchemy.create_engine("sqlite://", poolclass=StaticPool)
    _begin_at_once(engine)
    database = Database(engine, "memory")
    _make(database)
    return database


def _url(location: str) -> URL:
    if "://" not in location:
        return URL.create("sqlite", database=str(Path(location).expanduser().absolute()))
    try:
        url = make_url(location)
    except (ArgumentError, ValueError):  # a port that is no number
        raise UsageError(f"{location!r} is no URL of a database; write a path, or {_POSTGRESQL}") from None
    if url.drivername in ("postgres", "postgresql"):
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername not in ("sqlite", "postgresql+psycopg") or (url.drivername == "sqlite" and not url.database):
        raise UsageError(f"{url.drivername}: no database that is known here; write a path, or {_POSTGRESQL}")
    return url


def _engine(url: URL) -> Engine:
    if url.drivername == "sqlite":
        engine = sqlalchemy.create_engine(url, connect_args={} if "timeout" in url.query else {"timeout": PATIENCE})
        _begin_at_once(engine)
        return engine
    try:
        return sqlalchemy.create_engine(url, connect_args={"connect_timeout": 10})
    except (ImportError, NoSuchModuleError):
        raise UsageError("PostgreSQL needs its driver: pip install 'pytest-llamaperf[postgresql]'") from None


def _begin_at_once(engine: Engine) -> None:
    """Python's sqlite3 begins a transaction at the first change: two that have read by then end each other's."""

    @event.listens_for(engine, "connect")
    def _(connection: Any, record: object) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def _(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writing", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _make(database: Database) -> None:
    database.let_read_while_writing()
    with database.writing() as connection:
        if sqlalchemy.inspect(connection).has_table(schema.about.name):
            return  # another process was first
        others = sqlalchemy.inspect(connection).get_table_names()
        if taken := sorted(set(others) & set(schema.metadata.tables)):
            raise UsageError(f"{database.name}: has tables of something else ({taken[0]}); name an empty database")
        schema.metadata.create_all(connection)
        connection.execute(insert(schema.about).values(schema=schema.SCHEMA, written_by=version("pytest-llamaperf")))


def _check(database: Database) -> None:
    with database.reading() as connection:
        row = connection.execute(select(schema.about)).first()
        if row is None or not isinstance(row.schema, int) or row.schema < 1:
            raise Damaged("it does not say its schema")
    if row.schema > schema.SCHEMA:
        raise UsageError(
            f"{database.name}: has schema {row.schema}, this version reads {schema.SCHEMA}; pytest-llamaperf "
            f"{row.written_by} made it: read it with that one or a newer one"
        )
