"""Accuracy tasks known by name: what of lm-eval they are, how many documents, and what loss is allowed."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from pytest_llamaperf.cases import Model, Task
from pytest_llamaperf.documents import Section, read_document
from pytest_llamaperf.errors import UsageError, nearest

_FILE = Path(__file__).parent / "tasks.yaml"

# What is asked or looked at beside accuracy tasks, always in the same way, so that no entry describes it.
FIXED = ("answers", "repeats", "text", "checkpoint")


@dataclass(frozen=True)
class Evaluation:
    """One entry of tasks.yaml, which says what each field is. `shots` and `documents` are None for what the task has.

    `folder` and `data` are empty for tasks of lm-eval.
    """

    name: str
    lm_eval: str
    metric: str
    filter: str
    folder: str
    data: str
    shots: int | None
    documents: int | None
    count: int
    groups: int
    likeness: float
    discordance: float
    margin: float
    margins: Mapping[str, float]
    source: str

    @property
    def offline(self) -> bool:
        """Whether its documents are in the package."""
        return self.folder == "offline"

    def margin_for(self, model: Model) -> float:
        """Loss that is allowed for a model; of a variant `NAME@...` that of NAME."""
        return self.margins.get(model.name.partition("@")[0], self.margin)


@functools.cache
def evaluations() -> dict[str, Evaluation]:
    return {name: _evaluation(name, section) for name, section in read_document(_FILE).sections()}


def evaluation_named(name: str) -> Evaluation:
    """Raises UsageError with the nearest name for an unknown one."""
    if name not in evaluations():
        raise UsageError(f"unknown accuracy task {name!r}; {nearest(name, evaluations())}")
    return evaluations()[name]


def task_named(name: str) -> Task:
    """An accuracy task or a fixed one. Raises UsageError with the nearest name for an unknown one."""
    if name not in FIXED and name not in evaluations():
        raise UsageError(f"unknown task {name!r}; {nearest(name, (*FIXED, *evaluations()))}")
    return Task(name)


def _evaluation(name: str, entry: Section) -> Evaluation:
    entry.only(*(field.name for field in fields(Evaluation) if field.name != "name"))
    margins = entry.section("margins") if "margins" in entry else None
    return Evaluation(
        name,
        lm_eval=entry.text("lm_eval"),
        metric=entry.text("metric"),
        filter=entry.text("filter", "none"),
        folder=entry.text("folder") if "folder" in entry else "",
        data=entry.text("data") if "data" in entry else "",
        shots=entry.whole("shots") if "shots" in entry else None,
        documents=entry.whole("documents", least=1) if "documents" in entry else None,
        count=entry.whole("count", least=1),
        groups=entry.whole("groups", least=1),
        likeness=entry.number("likeness", 0.1, least=0),
        discordance=entry.number("discordance", least=0),
        margin=entry.number("margin", least=0),
        margins={model: margins.number(model, least=0) for model in margins} if margins else {},
        source=entry.text("source"),
    )
