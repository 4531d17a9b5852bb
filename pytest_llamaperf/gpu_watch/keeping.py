"""Every sample of a case's GPUs in a file: JSON lines, each written as soon as it is known.

    {"schema": 1, "case": ..., "interval": ..., "columns": ["gpu", "sm_clock", ...]}
    {"began": "2026-11-22T10:00:00Z", "gpus": {"0": "GPU-..."}}     for every run of its engine
    {"at": 0.5, "samples": [[0, 1980, ...], ...]}                   a row of the columns for each GPU
    {"ended": 12.5, "blind": null, "problems": []}                  missing of a run that was cut off

Columns and units are those of `gpu_health.Sample`; times are seconds since that run began.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pytest_llamaperf.cases import Case
from pytest_llamaperf.gpu_health import Sample

FOLDER = "gpus"  # within the folder of results
SCHEMA = 1
COLUMNS = tuple(field.name for field in dataclasses.fields(Sample) if field.name != "at")


def trace_name(case: Case) -> str:
    """Where the samples of a case are kept, within the folder of results."""
    name = re.sub(r"[^-.@=\w]+", "_", str(case))
    return f"{FOLDER}/{name}.jsonl"


class TraceFile:
    """Begun anew by each session. A disk that fails is told by `problem`, and what is measured counts all the same."""

    def __init__(self, results: Path, case: Case, interval: float) -> None:
        self.name = trace_name(case)
        self.problem: str | None = None
        self._path = results / self.name
        self._mode = "w"
        self._header = {"schema": SCHEMA, "case": str(case), "interval": interval, "columns": COLUMNS}

    def begin(self, uuids: Mapping[int, str]) -> None:
        began = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._write({"began": began, "gpus": {str(gpu): uuid for gpu, uuid in uuids.items()}})

    def add(self, at: float, samples: Sequence[Sample]) -> None:
        rows = [[_plain(getattr(sample, column)) for column in COLUMNS] for sample in samples]
        self._write({"at": round(at, 3), "samples": rows})

    def end(self, ended: float, blind: str | None, problems: Sequence[str]) -> None:
        self._write({"ended": round(ended, 3), "blind": blind, "problems": list(problems)})

    def _write(self, line: Mapping[str, Any]) -> None:
        if self.problem:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open(self._mode, encoding="utf-8") as file:
                if self._mode == "w":
                    file.write(json.dumps(self._header) + "\n")
                    self._mode = "a"
                file.write(json.dumps(line, separators=(",", ":")) + "\n")
        except OSError as problem:
            self.problem = f"{self.name} is not complete: {problem.strerror or problem}"


def _plain(value: Any) -> Any:
    return {str(pid): used for pid, used in value.items()} if isinstance(value, Mapping) else value
