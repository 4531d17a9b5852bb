"""What a comparison measures, kept as it is measured: a session that was cut off goes on, and measures nothing twice.

against.jsonl: a header of what is compared, then a line for each thing that was measured whole, each with a checksum. Order
does not matter: whoever asks the same again is given what was answered before, each answer once.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pytest_llamaperf.cases import Case
from pytest_llamaperf.errors import LlamaperfError, UsageError
from pytest_llamaperf.files import checksum, is_absent, write_atomically
from pytest_llamaperf.gpu_health import Health
from pytest_llamaperf.measurements import Fingerprint, Measurement, Source
from pytest_llamaperf.metrics import metric_named
from pytest_llamaperf.wording import counted, shown_path

# 1: a header, and steps. 2: each line has a checksum.
SCHEMA = 2

Measured = Mapping[Case, Measurement | LlamaperfError]
# Measures cases in so many fresh restarts of their engines.
Measure = Callable[[Sequence[Case], int], Measured]


class Journal:
    """`about` tells what is compared with what, and how.

    answered  how often something was there already
    problem   why nothing is kept any more; what is measured counts all the same
    """

    def __init__(self, path: Path, about: Mapping[str, object], *, resume: bool) -> None:
        """Goes on with the file that is there, or begins one.

        Raises UsageError for a file of another comparison, for one that is damaged or cannot be read or written, and for an
        unfinished one that would be lost.
        """
        self.answered = 0
        self.problem: str | None = None
        self._kept: dict[str, deque[list[dict[str, Any]]]] = defaultdict(deque)
        header = {"schema": SCHEMA, "about": dict(about)}
        lines = _lines(path)
        if lines and "ended" in lines[-1]:
            lines = []  # of a session that told all it found: who compares again has another build, or wants to know again
        if resume and lines:
            self._take(path, lines, header)
        elif len(lines) > 1 and "finished" not in lines[-1]:
            raise UsageError(
                f"{shown_path(path)}: a comparison was cut off here, with {counted(len(lines) - 1, 'step')} measured; --resume goes on "
                "with it, another --results folder begins a new one"
            )
        self._path = path
        # Also without what was cut off in the middle of a line.
        kept = (header, *lines[1:]) if resume else (header,)
        try:
            write_atomically(path, "".join(map(_line, kept)))
        except OSError as problem:
            raise UsageError(f"{shown_path(path)}: cannot be written: {problem.strerror}") from None

    def through(self, measure: Measure) -> Measure:
        """The same, but asked only for what is not kept. What failed is not kept, and so is tried again."""

        def kept(cases: Sequence[Case], restarts: int) -> Measured:
            asked = json.dumps([[str(case) for case in cases], restarts])
            if self._kept[asked]:
                self.answered += 1
                known = self._kept[asked].popleft()
                return {case: Measurement(case, **made) for case, made in zip(cases, known, strict=True)}
            measured = measure(cases, restarts)
            made = [_plain(found) for case in cases if isinstance(found := measured[case], Measurement)]
            if len(made) == len(cases):
                self._write({"asked": asked, "found": made})
            return measured

        return kept

    def finish(self) -> None:
        """Everything that was asked for is known; the next session begins anew."""
        self._write({"finished": True})

    def end(self) -> None:
        """Everything that was found was told; there is nothing to go on with."""
        self._write({"ended": True})

    def _take(self, path: Path, lines: Sequence[Mapping[str, Any]], header: Mapping[str, Any]) -> None:
        where = shown_path(path)
        schema, before, now = lines[0].get("schema"), lines[0].get("about"), header["about"]
        if schema != SCHEMA:
            raise UsageError(f"{where}: is of schema {schema!r}, this version goes on with {SCHEMA}")
        if not isinstance(before, dict):
            raise UsageError(_damaged(path, 1))
        different = [name for name in sorted(before | now) if before.get(name) != now.get(name)]
        if different:
            told = "; ".join(f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in different)
            raise UsageError(
                f"{where}: is of another comparison: {told}; repeat its options, or begin anew in another --results folder"
            )
        for number, line in enumerate(lines[1:], 2):
            if "finished" in line or "ended" in line:
                continue
            try:
                asked, found = line["asked"], [_read(made) for made in line["found"]]
                cases, _ = json.loads(asked)
                if len(found) != len(cases):
                    raise ValueError("an answer to something else")
            except (KeyError, TypeError, ValueError, AttributeError, UsageError, RecursionError):
                raise UsageError(_damaged(path, number)) from None
            self._kept[asked].append(found)

    def _write(self, step: Mapping[str, object]) -> None:
        if self.problem:
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_line(step))
                file.flush()
                os.fsync(file.fileno())
        except OSError as problem:
            self.problem = f"{shown_path(self._path)} is not complete: {problem.strerror or problem}"


def _line(step: Mapping[str, object]) -> str:
    return json.dumps({**step, "checksum": checksum(step)}, allow_nan=False) + "\n"


def _lines(path: Path) -> list[dict[str, Any]]:
    """What was written whole: the last line may have been cut off. Raises UsageError for a line that is not as it was."""
    if is_absent(path):
        return []
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as problem:
        raise UsageError(f"{shown_path(path)}: cannot be read: {problem.strerror}") from None
    found: list[dict[str, Any]] = []
    for number, line in enumerate(text[: text.rfind("\n") + 1].split("\n")[:-1], 1):
        step = _step(line)
        of_today = (found or [step or {}])[0].get("schema") == SCHEMA
        if step is None or (of_today and step.pop("checksum", None) != checksum(step)):
            raise UsageError(_damaged(path, number))
        found.append(step)
    return found


def _step(line: str) -> dict[str, Any] | None:
    try:
        step = json.loads(line, parse_constant=_refused)
    except (ValueError, RecursionError):
        return None
    return step if isinstance(step, dict) else None


def _refused(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _damaged(path: Path, number: int) -> str:
    return f"{shown_path(path)}:{number}: is no step of a comparison; begin anew in another --results folder"


def _plain(measurement: Measurement) -> dict[str, Any]:
    return {
        "source": measurement.source.value,
        "samples": {metric.name: list(values) for metric, values in measurement.samples.items()},
        **measurement.fingerprint.to_dict(),
        "notes": list(measurement.notes),
        "elapsed": list(measurement.elapsed),
        "reproduce": measurement.reproduce,
        "health": measurement.health.to_dict() if measurement.health else None,
    }


def _read(made: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a Measurement but its case."""
    return {
        "source": Source(made["source"]),
        "samples": {metric_named(name): tuple(map(float, values)) for name, values in made["samples"].items()},
        "fingerprint": Fingerprint(dict(made["versions"]), dict(made["settings"])),
        "notes": tuple(made["notes"]),
        "elapsed": tuple(made["elapsed"]),
        "reproduce": made["reproduce"],
        "health": Health.from_dict(made["health"]) if made["health"] else None,
    }
