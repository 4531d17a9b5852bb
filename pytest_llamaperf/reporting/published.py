"""What others have published of the model and task of a measured accuracy, as lines below its table. Nothing is judged by it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pytest_llamaperf.catalog.accuracies import Figure, Publication, publications
from pytest_llamaperf.measurements import Source
from pytest_llamaperf.metrics import ACCURACY
from pytest_llamaperf.records import Result
from pytest_llamaperf.wording import counted

# A loss says something about the accuracy of a recipe, too.
LOSS = "loss_vs_bf16"
WARNING = (
    "published accuracies are information: evaluators differ in prompts, templates and versions, so that only differences "
    "within one of them count; sources in pytest_llamaperf/catalog/accuracies.yaml"
)


def published_lines(results: Sequence[Result]) -> list[str]:
    """One for each publication and recipe that a result is about, once; none where nothing was measured or published."""
    return list(dict.fromkeys(line for result in results for line in _lines(result)))


def _lines(result: Result) -> Iterator[str]:
    if result.source != Source.MEASURED or result.value is None or result.case["task"] is None:
        return
    recipe = str(result.case["recipe"])
    for publication in publications():
        metric = LOSS if result.metric == ACCURACY.name and LOSS in publication.metrics else result.metric
        if publication.task != result.case["task"] or metric not in publication.metrics:
            continue
        figures = publication.beside(str(result.case["model"]), recipe)
        if figures:
            yield _line(publication, figures, metric, recipe)


def _line(publication: Publication, figures: Sequence[Figure], metric: str, recipe: str) -> str:
    asked = "" if publication.documents is None else f", {counted(publication.documents, 'document')}"
    told = ", ".join(_told(figure, metric, recipe) for figure in figures)
    return f"published by {publication.title}{asked}: {told}"


def _told(figure: Figure, metric: str, recipe: str) -> str:
    value = figure.percent[metric]
    digits = f"{value:.2f}" if round(value, 2) == value else f"{value:g}"
    amount = f"{digits} % less than BF16" if metric == LOSS else f"{digits} %"
    how = figure.precision + (f", KV cache {figure.kv_cache}" if figure.kv_cache else "")
    name = figure.recipe.name
    closest = "" if name in (recipe, "bf16") else f"closest to {recipe} is "
    return f"{closest}{name} {amount} [{how}]"
