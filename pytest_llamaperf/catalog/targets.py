"""Accuracy that others ask of a model: published references, and what share of them is enough."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_llamaperf.cases import Case
from pytest_llamaperf.documents import Section, read_document
from pytest_llamaperf.errors import UsageError

_FILE = Path(__file__).parent / "targets.yaml"


@dataclass(frozen=True)
class Target:
    """What one measure of an evaluation has to be: from `least` to `most` times `reference`, which is in `unit`."""

    measure: str
    reference: float
    unit: str
    least: float
    most: float

    def allows(self, value: float) -> bool:
        return self.least * self.reference <= value <= self.most * self.reference


@dataclass(frozen=True)
class Targets:
    """All that is asked of a task's answers, and of how many documents."""

    documents: int
    targets: tuple[Target, ...]
    source: str


def targets_of(case: Case) -> Targets:
    """Raises UsageError where nobody asks anything of that model and task."""
    model = case.model.name.partition("@")[0]
    found = _all().get(model, {}).get(str(case.work))
    if found is None:
        known = ", ".join(f"{name} {task}" for name, tasks in _all().items() for task in tasks)
        raise UsageError(f"{case}: there are no targets for it in {_FILE.name}; there are for: {known}")
    return found


def measures_of(task: str) -> tuple[str, ...]:
    """What any model's answers to a task are measured by, where others set targets for it."""
    return tuple(
        dict.fromkeys(target.measure for tasks in _all().values() if task in tasks for target in tasks[task].targets)
    )


@functools.cache
def _all() -> Mapping[str, Mapping[str, Targets]]:
    return {
        model: {task: _entry(entry) for task, entry in tasks.sections()}
        for model, tasks in read_document(_FILE).sections()
    }


def _entry(entry: Section) -> Targets:
    entry.only("documents", "measures", "source")
    measures = entry.section("measures")
    targets = tuple(_target(name, measure) for name, measure in measures.sections())
    if not targets:
        raise entry.error("no measure has a target", key="measures")
    return Targets(entry.whole("documents", least=1), targets, entry.text("source"))


def _target(name: str, entry: Section) -> Target:
    entry.only("percent", "tokens", "least", "most")
    if ("percent" in entry) == ("tokens" in entry):
        raise entry.error("a target is in percent or in tokens, one of them")
    least, most = entry.number("least", least=0), entry.number("most") if "most" in entry else math.inf
    if not 0 < least <= most:
        raise entry.error("'least' is above 0 and not above 'most'", key="least")
    if "percent" in entry:
        return Target(name, entry.number("percent", least=0) / 100, "fraction", least, most)
    return Target(name, entry.number("tokens", least=0), "tok", least, most)
