"""Results as the page shows them, checked: a file may hold anything."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.measurements import Source
from pytest_llamaperf.metrics import OUTPUT_THROUGHPUT, Better
from pytest_llamaperf.records import Result


class Mark(StrEnum):
    """What a number is, and so how it is drawn: never alike. A promise that was measured some day is none of today."""

    MEASURED = "measured"
    PREDICTED = "predicted"
    PUBLISHED = "published"
    PROMISED = "promised"


@dataclass(frozen=True)
class Promise:
    """`limit` is the worst value that keeps it, `tolerance` away; None where the metric has two sides. Base units."""

    value: float
    tolerance: float
    limit: float | None
    mark: Mark
    place: str
    reference: str


@dataclass(frozen=True)
class Paired:
    """An accuracy compared document by document, in points; see `Comparison.counts`."""

    documents: float
    groups: float
    only_reference: float
    only_candidate: float
    difference: float
    margin: float
    low: float | None = None
    high: float | None = None
    both: float | None = None


@dataclass(frozen=True, eq=False)
class Row:
    """A result. `lengths` is `2048/128` or the name of a distribution; `work` the workload with its lengths, or the task."""

    result: Result
    id: str
    hardware: str
    model: str
    recipe: str
    layout: str
    gpus: int
    work: str
    scenario: str | None
    lengths: str
    task: str | None
    order: tuple[str, str, int, str, str]
    mark: Mark | None
    value: float | None
    low: float | None
    high: float | None
    promise: Promise | None
    metrics: Mapping[str, float]
    operators: Mapping[str, Mapping[str, float]]
    paired: Paired | None
    versions: Mapping[str, str]
    settings: Mapping[str, str]

    @property
    def name(self) -> str:
        """Of the case, without the model."""
        return f"{self.recipe} {self.layout} {self.work}"

    @property
    def subject(self) -> str:
        return f"{self.model} on {self.hardware}"

    @property
    def compared(self) -> str:
        """What an accuracy is compared with, as recipe and layout; empty where the reference names no case."""
        parts = (self.promise.reference if self.promise else "").partition(" ")[0].split("/")
        return f"{parts[3]} {parts[4]}" if len(parts) == 6 else ""

    @property
    def gain(self) -> float | None:
        """How much better than promised, relative: -0.1 is a tenth worse, whichever way the metric goes."""
        if self.value is None or self.promise is None or not self.promise.value:
            return None
        change = self.value / self.promise.value - 1
        return -change if self.result.better == Better.LOWER else change


def rows_of(results: Sequence[Result]) -> tuple[Row, ...]:
    """By model, recipe, layout and lengths. Raises UsageError for a result that this version did not write."""
    rows = []
    for result in results:
        try:
            rows.append(_row(result))
        except (KeyError, TypeError, ValueError, AttributeError) as problem:
            told = f"{type(problem).__name__}: {problem}"
            raise UsageError(f"a result of {result.nodeid} is none that this version writes: {told}") from None
    return tuple(sorted(rows, key=lambda row: row.order))


def _row(result: Result) -> Row:
    case = result.case
    hardware, model, recipe, layout = (str(case[part]) for part in ("hardware", "model", "recipe", "layout"))
    scenario, task = (None if case[part] is None else str(case[part]) for part in ("workload", "task"))
    isl, osl = int(case["isl"] or 0), int(case["osl"] or 0)
    lengths = "" if task else f"{isl}/{osl}" if case["lengths"] == "constant" else str(case["lengths"])
    return Row(
        result=result,
        id=str(case["id"]),
        hardware=hardware,
        model=model,
        recipe=recipe,
        layout=layout,
        gpus=int(case["tp"]) * int(case["pp"]) * int(case["dp"]),
        work=task or f"{scenario} {lengths}",
        scenario=scenario,
        lengths=lengths,
        task=task,
        order=(model, task or scenario or "", isl, recipe, layout),
        mark=Mark(result.source) if result.source else None,
        value=_number(result.value),
        low=_number(result.low),
        high=_number(result.high),
        promise=_promise(result),
        metrics=_numbers(result.metrics),
        operators={phase: _numbers(seconds) for phase, seconds in result.operators.items()},
        paired=Paired(**_numbers(result.paired)) if result.paired else None,
        versions={name: str(value) for name, value in result.fingerprint.get("versions", {}).items()},
        settings={name: str(value) for name, value in result.fingerprint.get("settings", {}).items()},
    )


def _promise(result: Result) -> Promise | None:
    if result.baseline is None:
        return None
    told: Mapping[str, Any] = result.baseline
    value, tolerance = float(told["value"]), float(told["tolerance"])
    sides = {Better.HIGHER: -1, Better.LOWER: 1}
    side = sides.get(Better(result.better)) if result.better else None
    return Promise(
        value=value,
        tolerance=tolerance,
        limit=None if side is None else value * (1 + side * tolerance),
        mark=Mark.PUBLISHED if told["source"] == Source.PUBLISHED else Mark.PROMISED,
        place=f"{told['file']}:{told['line']}" if told.get("file") else "",
        reference=str(told.get("reference") or ""),
    )


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    found = {name: _number(value) for name, value in values.items()}
    return {name: value for name, value in found.items() if value is not None}


def _number(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise ValueError(f"{value} is no value")
    return value


def throughput(row: Row) -> float | None:
    """Output tokens per second of all GPUs, wherever the result has it."""
    return row.value if row.result.metric == OUTPUT_THROUGHPUT.name else row.metrics.get(OUTPUT_THROUGHPUT.name)
