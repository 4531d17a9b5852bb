"""Which cases a suite's test is about: the markers `cases` and `promised`, read into Case values."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import pytest

from pytest_llamaperf.baselines import BaselineBook
from pytest_llamaperf.cases import CPU, ENGINES, Case, Layout, Task, Workload
from pytest_llamaperf.catalog import check_weights, gpus, model_named, recipe_named, workload_named
from pytest_llamaperf.catalog.tasks import task_named
from pytest_llamaperf.errors import UsageError, nearest
from pytest_llamaperf.metrics import metric_named

MARKERS = (
    "accuracy: a test of what is answered and not of how fast; -m accuracy runs these alone, -m 'not accuracy' none of them",
    "cases(model, recipe, layout, workload or task, hardware=all GPUs, engine=all): a test for every combination of names",
    "versus(recipe=..., layout=..., engine=..., model=...): the same case but for this, measured in turn; a model may have a recipe",
    "promised(metric, model='*', ...): a test for every case whose baselines promise the metric and match the patterns",
)

_PARTS = ("model", "recipe", "layout", "workload")


def selected_cases(
    markers: Iterable[pytest.Mark], *, gpu: str, engine: str, book_for: Callable[[str], BaselineBook]
) -> list[Case]:
    """The cases of a test's markers for this run, each once, in the order written.

    Raises UsageError naming the argument that is wrong.
    """
    cases: dict[str, Case] = {}
    # pytest gives the marker nearest to the function first; people read from the top.
    for marker in list(markers)[::-1]:
        if marker.args:
            raise UsageError(f"@pytest.mark.{marker.name} takes names, as in {marker.name}(model='llama-3.1-8b')")
        found = (
            _combined(marker.kwargs, gpu, engine)
            if marker.name == "cases"
            else _promised(marker.kwargs, gpu, engine, book_for)
        )
        cases |= {case.id: case for case in found if case.id not in cases}
    return list(cases.values())


def _combined(arguments: Mapping[str, Any], gpu: str, engine: str) -> list[Case]:
    _refuse_unknown("cases", arguments, (*_PARTS, "task", "hardware", "engine"))
    if "task" in arguments and "workload" in arguments:
        raise UsageError("@pytest.mark.cases: a case has a workload or a task, not both")
    work = "task" if "task" in arguments else "workload"
    missing = [part for part in ("model", "recipe", "layout", work) if part not in arguments]
    if missing:
        raise UsageError(f"@pytest.mark.cases needs {', '.join(missing)}")
    allowed = _names("hardware", arguments.get("hardware", tuple(gpus())))
    for name in allowed:
        if name != CPU and name not in gpus():
            raise UsageError(f"@pytest.mark.cases: unknown hardware {name!r}; {nearest(name, (CPU, *gpus()))}")
    hardware = gpu if gpu in allowed else allowed[0]
    engines = _names("engine", arguments.get("engine", ENGINES))
    for name in engines:
        if name not in ENGINES:
            raise UsageError(f"@pytest.mark.cases: unknown engine {name!r}; {nearest(name, ENGINES)}")
    engine = engine if engine in engines else engines[0]
    if (
        hardware == CPU and gpu != CPU and "torch" in engines
    ):  # not about this run: named by the engine that would run it
        engine = "torch"
    cases = [
        Case(hardware, engine, model_named(model), recipe_named(recipe), Layout.parse(layout), _work(work, name))
        for model, recipe, layout, name in itertools.product(
            *(_names(part, arguments[part]) for part in ("model", "recipe", "layout", work))
        )
    ]
    for case in cases:
        check_weights(case)
    return cases


def other_case(case: Case, marker: pytest.Mark) -> Case:
    """The case that a test's marker `versus` compares with. Raises UsageError for one that is no other."""
    _refuse_unknown("versus", marker.kwargs, ("model", "recipe", "layout", "engine"))
    if marker.args or not (len(marker.kwargs) == 1 or marker.kwargs.keys() == {"model", "recipe"}):
        raise UsageError(
            "@pytest.mark.versus names one thing that is different, as in versus(recipe='bf16'), or a model and its recipe"
        )
    other = case
    for part, name in marker.kwargs.items():
        if not isinstance(name, str):
            raise UsageError(f"@pytest.mark.versus: {part} is one name, not {name!r}")
        match part:
            case "model":
                other = other.with_model(model_named(name))
            case "recipe":
                other = other.with_recipe(recipe_named(name))
            case "layout":
                other = other.with_layout(Layout.parse(name))
            case _:
                other = other.with_engine(name)
    if other == case:
        told = ", ".join(f"{part}={name!r}" for part, name in marker.kwargs.items())
        raise UsageError(f"@pytest.mark.versus({told}): that is {case} itself")
    return other


def _work(kind: str, name: str) -> Workload | Task:
    return workload_named(name) if kind == "workload" else task_named(name)


def _promised(
    arguments: Mapping[str, Any], gpu: str, engine: str, book_for: Callable[[str], BaselineBook]
) -> list[Case]:
    _refuse_unknown("promised", arguments, ("metric", *_PARTS))
    if "metric" not in arguments:
        raise UsageError("@pytest.mark.promised needs metric")
    metric = metric_named(str(arguments["metric"]))
    patterns = {part: arguments.get(part, "*") for part in _PARTS}
    for part, pattern in patterns.items():
        if not isinstance(pattern, str):
            raise UsageError(f"@pytest.mark.promised: {part} is a pattern such as 'llama-3*', not {pattern!r}")
    book = book_for(gpu)
    # A promise may be made for another engine than the one that runs, so the book is asked, not compared.
    named = [_run_by(engine, entry.case) for entry in book if entry.metric == metric]
    return [case for case in named if case is not None and book.find(case, metric) and _matches(case, patterns)]


def _run_by(engine: str, case: Case) -> Case | None:
    """None where that engine cannot lay the model out so: the promise is about another engine then."""
    try:
        return case.with_engine(engine)
    except UsageError:
        return None


def _matches(case: Case, patterns: Mapping[str, str]) -> bool:
    found = {"model": case.model, "recipe": case.recipe, "layout": case.layout, "workload": case.work}
    return all(fnmatchcase(str(found[part]), pattern) for part, pattern in patterns.items())


def _refuse_unknown(marker: str, arguments: Mapping[str, Any], known: Sequence[str]) -> None:
    for name in arguments:
        if name not in known:
            raise UsageError(f"@pytest.mark.{marker}: unknown argument {name!r}; {nearest(name, known)}")


def _names(argument: str, value: object) -> list[str]:
    """One name, or a list of names."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not names or not all(isinstance(name, str) for name in names):
        raise UsageError(f"@pytest.mark.cases: {argument} is a name or a list of names, not {value!r}")
    return list(names)
