"""The tables of a history. What many values share stands once: the run, the case, and where the values come from."""

from __future__ import annotations

from sqlalchemy import Column, Double, ForeignKey, Index, Integer, MetaData, String, Table, Text

# 1: runs, cases, origins, observations.
SCHEMA = 1

metadata = MetaData()

about = Table(
    "llamaperf_history",
    metadata,
    Column("schema", Integer, nullable=False),
    Column("written_by", Text, nullable=False),  # version of pytest-llamaperf that made it
)
runs = Table(
    "runs",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("name", Text, nullable=False, unique=True),
    Column("digest", String(64), nullable=False),
    Column("number", Integer, nullable=False),  # of its observations
    Column("imported", Text, nullable=False),  # UTC, ISO 8601
    Column("file", Text),
)
# The parts of a case's id, by which it is looked for.
PARTS = ("hardware", "engine", "model", "recipe", "layout", "work")
cases = Table(
    "cases",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("name", Text, nullable=False, unique=True),
    *(Column(part, Text, nullable=False, index=part in ("hardware", "model")) for part in PARTS),
)
# Versions, settings and machine are JSON.
origins = Table(
    "origins",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("digest", String(64), nullable=False, unique=True),
    Column("source", Text, nullable=False),
    Column("harness", Text, nullable=False),
    Column("version", Text, index=True),
    Column("versions", Text, nullable=False),
    Column("settings", Text, nullable=False),
    Column("machine", Text, nullable=False),
)
# In the order in which they came: `id` grows. `restarts` are numbers with blanks between them,
# for they are read far oftener than anything else; `operators` are JSON.
observations = Table(
    "observations",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("run", ForeignKey("runs.id"), nullable=False, index=True),
    Column("case", ForeignKey("cases.id"), nullable=False),
    Column("origin", ForeignKey("origins.id"), nullable=False, index=True),
    Column("metric", Text, nullable=False),
    Column("unit", Text, nullable=False),
    Column("better", Text, nullable=False),
    Column("value", Double, nullable=False),
    Column("low", Double),
    Column("high", Double),
    Column("at", Text),
    Column("restarts", Text),
    Column("operators", Text),
    Column("outcome", Text),
    Column("reference", Text),
    Index("observations_by_series", "case", "metric"),
)
