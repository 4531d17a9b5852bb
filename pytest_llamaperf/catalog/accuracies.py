"""Accuracies that others have published: to look at beside ours, for no verdict may depend on them."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_llamaperf.cases import Recipe
from pytest_llamaperf.catalog import models, recipe_named, recipes
from pytest_llamaperf.catalog.tasks import evaluations
from pytest_llamaperf.documents import Section, read_document
from pytest_llamaperf.errors import nearest

_FILE = Path(__file__).parent / "accuracies.yaml"
_REFERENCE = "bf16"


@dataclass(frozen=True)
class Figure:
    """What was published of one recipe. `percent` by metric, as published; `precision` and `kv_cache` in its words."""

    recipe: Recipe
    percent: Mapping[str, float]
    precision: str
    kv_cache: str
    reference: str


@dataclass(frozen=True)
class Publication:
    """What one evaluator published of one task; accuracies.yaml says what each field is. `documents` is None if unknown."""

    name: str
    title: str
    reference: str
    task: str
    metrics: tuple[str, ...]
    documents: int | None
    models: Mapping[str, tuple[Figure, ...]]

    def beside(self, model: str, recipe: str) -> tuple[Figure, ...]:
        """Its figures of BF16 and of the recipe that is closest, whichever there are; none for a variant `NAME@...`."""
        figures = self.models.get(model, ())
        reference = [figure for figure in figures if figure.recipe.name == _REFERENCE]
        others = [figure for figure in figures if figure.recipe.name != _REFERENCE]
        if recipe not in recipes() or recipe == _REFERENCE or not others:
            return tuple(reference)
        return (*reference, min(others, key=lambda figure: _distance(figure.recipe, recipe_named(recipe))))


@functools.cache
def publications() -> tuple[Publication, ...]:
    return tuple(_read(_FILE))


def _distance(one: Recipe, other: Recipe) -> float:
    """Bytes a number apart in each part, and one for every part that is stored in another way."""
    parts = (
        (one.attention, other.attention),
        (one.feed_forward, other.feed_forward),
        (one.kv_cache, other.kv_cache),
    )
    return sum(abs(ours.bytes - theirs.bytes) + (ours is not theirs) for ours, theirs in parts)


def _read(path: Path) -> Iterator[Publication]:
    for name, entry in read_document(path).sections():
        yield _publication(name, entry)


def _publication(name: str, entry: Section) -> Publication:
    entry.only("title", "reference", "task", "metrics", "documents", "models")
    task, metrics = entry.text("task"), tuple(entry.texts("metrics"))
    if task not in evaluations():
        raise entry.error(f"unknown accuracy task {task!r}; {nearest(task, evaluations())}", key="task")
    if not metrics:
        raise entry.error("'metrics' names what the figures are, one at least", key="metrics")
    reference, of_models = entry.text("reference"), entry.section("models")
    for model in of_models:
        if model not in models():
            raise of_models.error(f"unknown model {model!r}; {nearest(model, models())}", key=model)
    return Publication(
        name,
        entry.text("title"),
        reference,
        task,
        metrics,
        entry.whole("documents", least=1) if "documents" in entry else None,
        {model: tuple(_figures(section, metrics, reference)) for model, section in of_models.sections()},
    )


def _figures(of_recipes: Section, metrics: tuple[str, ...], reference: str) -> Iterator[Figure]:
    for recipe, entry in of_recipes.sections():
        if recipe not in recipes():
            raise of_recipes.error(f"unknown recipe {recipe!r}; {nearest(recipe, recipes())}", key=recipe)
        entry.only(*metrics, "precision", "kv_cache", "reference")
        percent = {metric: entry.number(metric, least=0) for metric in metrics}
        for metric, value in percent.items():
            if value > 100:
                raise entry.error(f"{metric!r} is in percent, from 0 to 100, found {value:g}", key=metric)
        yield Figure(
            recipe_named(recipe),
            percent,
            entry.text("precision"),
            entry.text("kv_cache") if "kv_cache" in entry else "",
            entry.text("reference", reference),
        )
