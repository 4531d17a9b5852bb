"""What a release has to have judged, in reviewed YAML files: a suite that lost a test must not pass for a whole one.

`gates/<hardware>.yaml`:

    schema: 1
    hardware: h200
    count: 3                         # results required below, so that a line that gets lost is noticed
    required:
      405B, ModelOpt FP8 beside the official recipe:
        model: llama-3.1-405b
        recipe: [modelopt-fp8, llama-fp8]
        layout: tp8
        workload: max-throughput-2048-128
        metric: output_throughput
      405B, a healthy quantization:  # of a fixed task there is no metric: a test about it has to pass
        {model: llama-3.1-405b, recipe: modelopt-fp8, layout: tp8, task: text}
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pytest_llamaperf.baselines import BaselineBook, check_ratio
from pytest_llamaperf.cases import CPU, Case, Layout, Task, Workload
from pytest_llamaperf.catalog import check_weights, gpus, model_named, recipe_named, workload_named
from pytest_llamaperf.catalog.targets import measures_of
from pytest_llamaperf.catalog.tasks import FIXED, task_named
from pytest_llamaperf.documents import Section, read_document
from pytest_llamaperf.errors import UsageError, nearest
from pytest_llamaperf.files import is_absent
from pytest_llamaperf.metrics import ACCURACY, metric_named
from pytest_llamaperf.wording import shown_path

# 1: hardware, count, required.
SCHEMA = 1

_PARTS = ("model", "recipe", "layout")


@dataclass(frozen=True)
class Requirement:
    """A result that has to be there. `metric` is None where a test about the case has to pass, and none judges it.

    `place` is file and line of what asks for it.
    """

    case: str
    metric: str | None
    place: str

    def __str__(self) -> str:
        return f"{self.case} {self.metric}" if self.metric else self.case


def read_requirements(path: Path, *, hardware: str, engine: str) -> tuple[Requirement, ...]:
    """What a file requires of a run on that hardware under that engine.

    Raises DocumentError naming file, line and group for anything that could be misread, and for a file about other hardware.
    """
    document = read_document(path)
    document.only("schema", "hardware", "count", "required")
    document.expect_schema(SCHEMA)
    about = document.text("hardware")
    if about not in (CPU, *gpus()):
        raise document.error(f"unknown hardware {about!r}; {nearest(about, (CPU, *gpus()))}", key="hardware")
    if about != hardware:
        raise document.error(f"is about {about}, and this run about {hardware}", key="hardware")
    required: dict[tuple[str, str | None], Requirement] = {}
    groups = document.section("required")
    for name, group in groups.sections():
        group.where = name
        place = f"{shown_path(path)}:{groups.line_of(name)}"
        for case, metric in _group(group, hardware, engine):
            key = (case.id, metric)
            if key in required:
                raise group.error(f"{required[key]} is required already in {required[key].place}; remove one")
            required[key] = Requirement(case.id, metric, place)
    count = document.whole("count", least=1)
    if count != len(required):
        raise document.error(
            f"count is {count}, and {len(required)} are required below; if that is meant, write count: {len(required)}",
            key="count",
        )
    return tuple(required.values())


def required_for(hardware: str, engine: str, *, root: Path, given: Path | None = None) -> tuple[Requirement, ...]:
    """What a release has to have judged, by the file `given` or `root`/gates/<hardware>.yaml, where there is one.

    Raises DocumentError.
    """
    path = given or root / "gates" / f"{hardware}.yaml"
    if given is None and is_absent(path):
        return ()
    return read_requirements(path, hardware=hardware, engine=engine)


def promised_by(book: BaselineBook, engine: str) -> tuple[Requirement, ...]:
    """What is promised of an engine, whether or not a test asks."""
    return tuple(
        Requirement(entry.case.id, entry.metric.name, entry.place) for entry in book if entry.case.engine == engine
    )


def check_judged(work: Workload | Task, metric: str) -> None:
    """Refuse a metric by which such work is never judged. Raises UsageError."""
    if isinstance(work, Workload):
        metric_named(metric)
        check_ratio(metric)
        return
    known = () if work.name in FIXED else (ACCURACY.name, *measures_of(work.name))
    if metric not in known:
        raise UsageError(f"the task {work} is judged by no {metric!r}; {nearest(metric, known)}" if known else
                         f"the task {work} is judged by no metric: its tests pass or fail")  # fmt: skip


def _group(group: Section, hardware: str, engine: str) -> Iterator[tuple[Case, str | None]]:
    """Every combination of the names in a group, as the marker `cases` combines them."""
    group.only(*_PARTS, "workload", "task", "metric")
    if ("workload" in group) == ("task" in group):
        raise group.error("a case has a workload or a task, one of them")
    work = "task" if "task" in group else "workload"
    for *parts, name in itertools.product(*(group.names(part) for part in (*_PARTS, work))):
        try:
            case = _case(hardware, engine, parts, task_named(name) if work == "task" else workload_named(name))
        except UsageError as problem:
            raise group.error(str(problem)) from None
        fixed = isinstance(case.work, Task) and case.work.name in FIXED
        for metric in group.names("metric") if "metric" in group or not fixed else (None,):
            if metric is not None:
                try:
                    check_judged(case.work, metric)
                except UsageError as problem:
                    raise group.error(str(problem), key="metric") from None
            yield case, metric


def _case(hardware: str, engine: str, parts: list[str], work: Workload | Task) -> Case:
    model, recipe, layout = parts
    case = Case(hardware, engine, model_named(model), recipe_named(recipe), Layout.parse(layout), work)
    check_weights(case)
    return case
