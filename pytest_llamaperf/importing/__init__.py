"""Files of several tools read into observations; a file is recognized by what is in it, never by its name.

Each format has a module with a function that yields observations, so that a file of any size is read piece by piece.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.importing import lm_eval, published, pytest_benchmark, trtllm_bench
from pytest_llamaperf.importing.reading import LeftOut, Told, parsed
from pytest_llamaperf.observations import Observation, observations_of
from pytest_llamaperf.runs import read_run
from pytest_llamaperf.wording import shown_path

# What each JSON document has at its top, and who reads it.
_JSON = {
    ("engine", "world_info", "performance"): trtllm_bench.observations,
    ("machine_info", "benchmarks"): pytest_benchmark.observations,
    ("results", "configs", "versions"): lm_eval.observations,
}
FORMATS = (
    "a folder that --results wrote, its run.json or run.jsonl; a report of trtllm-bench (--report_json); JSON of "
    "pytest-benchmark (--benchmark-json); results of lm-eval; or a CSV of published figures"
)
_PEEK = 4096  # characters: a line of column names, or the beginning of a document


def read_observations(path: Path, told: Told | None = None) -> tuple[Observation, ...]:
    """All of a file. Raises UsageError for what cannot be read, or holds nothing that can be compared."""
    return tuple(observations_in(path, told))


def observations_in(path: Path, told: Told | None = None, left_out: LeftOut | None = None) -> Iterator[Observation]:
    """Of a file, one after the other; what is no case or metric of this project is counted in `left_out`, by reason.

    `told` is what people say of a file that does not say it. Raises UsageError, for a damaged file at its damage: what
    was given before is not to be kept.
    """
    told, left_out = told or Told(), LeftOut() if left_out is None else left_out
    found = _observations(path, told, left_out)
    first = next(found, None)
    if first is None:
        why = "; ".join(f"{count:,} x {reason}" for reason, count in left_out.items()) or "it is empty"
        raise UsageError(f"{shown_path(path)}: holds no value that could be kept: {why}")
    return itertools.chain([first], found)


def why_not_whole(path: Path) -> str:
    """Of a run of our own that was cut off; empty for a whole one, and for a file of another tool."""
    try:
        return read_run(path).incomplete
    except UsageError:
        return ""


def _observations(path: Path, told: Told, left_out: LeftOut) -> Iterator[Observation]:
    if path.is_dir():
        return iter(observations_of(read_run(path)))
    where = shown_path(path)
    start = _beginning(path)
    if start.lstrip().startswith("{"):
        if path.suffix == ".jsonl":
            return iter(observations_of(read_run(path)))
        document = parsed(where, path.read_bytes())
        if "schema" in document:
            return iter(observations_of(read_run(path)))
        for keys, observations in _JSON.items():
            if all(key in document for key in keys):
                return observations(where, document, told, left_out)
        raise UsageError(f"{where}: is JSON of an unknown kind, with {_named(document)}; what can be read is {FORMATS}")
    first = start.partition("\n")[0]
    if published.is_header(next(csv.reader([first]), [])):
        return published.observations(path, left_out)
    raise UsageError(f"{where}: is nothing that is known here; what can be read is {FORMATS}")


def _beginning(path: Path) -> str:
    try:
        with path.open(encoding="utf-8-sig") as file:
            return file.read(_PEEK)
    except UnicodeDecodeError:
        raise UsageError(f"{shown_path(path)}: is no text; what can be read is {FORMATS}") from None
    except OSError as problem:
        raise UsageError(f"{shown_path(path)}: cannot be read: {problem.strerror}; name {FORMATS}") from None


def _named(document: dict[str, Any]) -> str:
    names = [json.dumps(name)[:40] for name in itertools.islice(document, 4)]
    return ", ".join(names) or "nothing in it"
