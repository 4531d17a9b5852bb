"""Published accuracies: the file is read strictly, the closest recipe is found, and they stand below a table and judge nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pytest_llamaperf.cases import Case, Layout, Task
from pytest_llamaperf.catalog import model_named, models, recipe_named
from pytest_llamaperf.catalog.accuracies import _read, publications
from pytest_llamaperf.catalog.tasks import evaluations
from pytest_llamaperf.errors import DocumentError
from pytest_llamaperf.records import Result
from pytest_llamaperf.reporting.published import WARNING, published_lines
from pytest_llamaperf.reporting.tables import summary_text

TENSORRT_LLM = "published by TensorRT-LLM's accuracy references"
ENTRY = """one:
  title: One
  reference: a repository
  task: mmlu
  metrics: [accuracy]
  documents: 4096
  models:
    llama-3.1-8b:
      bf16: {accuracy: 68.17, precision: BF16}
"""


def result(model: str, recipe: str, task: str = "mmlu", metric: str | None = "accuracy", **other: object) -> Result:
    case = Case("h200", "tensorrt-llm", model_named(model), recipe_named(recipe), Layout(), Task(task))
    found = Result(
        "t", case.to_dict(), metric, "fraction", "higher", "measured", (0.5,), 0.5, None, None, None, "pass", ""
    )
    return dataclasses.replace(found, **other)  # type: ignore[arg-type]


def test_every_publication_is_of_models_and_tasks_of_the_catalog_and_has_sources() -> None:
    assert publications()
    for publication in publications():
        assert publication.task in evaluations()
        assert set(publication.models) <= set(models())
        figures = [figure for found in publication.models.values() for figure in found]
        assert all("@" in figure.reference and figure.precision for figure in figures)


@pytest.mark.parametrize(
    ("recipe", "shown"),
    [
        ("bf16", ["bf16"]),
        ("modelopt-fp8", ["bf16", "modelopt-fp8"]),
        ("modelopt-fp8-bf16kv", ["bf16", "modelopt-fp8-bf16kv"]),
        ("llama-fp8", ["bf16", "modelopt-fp8-bf16kv"]),
        ("modelopt-int4-awq", ["bf16", "modelopt-fp8-bf16kv"]),
        ("of nobody", ["bf16"]),
    ],
)
def test_bf16_and_the_closest_recipe_are_shown(recipe: str, shown: list[str]) -> None:
    (mmlu,) = [publication for publication in publications() if publication.name == "tensorrt-llm-mmlu"]

    assert [figure.recipe.name for figure in mmlu.beside("llama-3.1-8b", recipe)] == shown
    assert mmlu.beside("llama-3.1-8b@random", recipe) == ()


def test_a_line_says_who_published_what_of_how_many_documents() -> None:
    assert published_lines([result("llama-3.1-8b", "modelopt-fp8")]) == [
        f"{TENSORRT_LLM}, 4,096 documents: bf16 68.17 % [unquantized (dtype auto)], modelopt-fp8 67.87 % [FP8, KV cache FP8]",
        "published by ModelOpt 0.21.1 on H100: closest to modelopt-fp8 is modelopt-fp8-bf16kv 1.50 % less than BF16 [FP8]",
    ]
    assert published_lines([result("llama-2-70b", "bf16", "openorca", "rouge2")]) == [
        "published by MLPerf Inference, evaluate-accuracy.py, 24,576 documents: bf16 22.0352 % [reference, FP16]"
    ]


@pytest.mark.parametrize(
    "found",
    [
        result("llama-3.1-405b", "modelopt-fp8"),
        result("smollm2-135m", "modelopt-fp8", "facts"),
        result("llama-3.1-8b", "modelopt-fp8", "arc-challenge"),
        result("llama-2-70b", "bf16", "openorca"),  # its accuracy is that of no metric that was published
        result("llama-3.1-8b", "modelopt-fp8", source="predicted"),
        result("llama-3.1-8b", "modelopt-fp8", metric=None, source=None, value=None, outcome="error"),
    ],
    ids=["another model", "our task", "another task", "another metric", "predicted", "an error"],
)
def test_nothing_is_shown_beside_what_nobody_published_or_measured(found: Result) -> None:
    assert published_lines([found]) == []


def test_lines_stand_below_their_table_and_the_warning_stands_once_at_the_end() -> None:
    results = [
        result("llama-3.1-8b", "modelopt-fp8"),
        result("llama-3.1-8b", "modelopt-fp8", case=result("llama-3.1-8b", "modelopt-fp8").case),
        result("llama-3.3-70b", "modelopt-fp8", "gsm8k"),
    ]

    lines = summary_text(results, width=200, color=False).splitlines()

    below = lines.index("llama-3.3-70b on h200 | gsm8k | accuracy")
    assert lines[below - 2].startswith("published by ModelOpt")
    assert sum(line.startswith(TENSORRT_LLM) for line in lines) == 2
    assert " ".join(lines).count(f"note: {WARNING}") == 1
    assert WARNING not in summary_text([result("smollm2-135m", "bf16", "facts")], width=200, color=False)


@pytest.mark.parametrize(
    ("change", "line", "problem"),
    [
        (("task: mmlu", "task: mmul"), 4, "unknown accuracy task 'mmul'; did you mean 'mmlu'"),
        (("llama-3.1-8b", "llama-3.1-9b"), 8, "unknown model 'llama-3.1-9b'; did you mean 'llama-3.1-8b'"),
        (("bf16:", "fp16:"), 9, "unknown recipe 'fp16'"),
        (("68.17", "0x44"), 9, "'accuracy' must be a finite number"),
        (("68.17", "681.7"), 9, "'accuracy' is in percent, from 0 to 100, found 681.7"),
        (("accuracy: 68.17", "acc: 68.17"), 9, "unknown key 'acc'"),
        ((", precision: BF16", ""), 9, "'precision' is missing"),
        (("[accuracy]", "[]"), 5, "'metrics' names what the figures are"),
        (("  reference: a repository\n", ""), 2, "'reference' is missing"),
        (("documents: 4096", "documents: 0"), 6, "'documents' must be at least 1"),
    ],
)
def test_a_wrong_entry_is_refused_with_file_and_line(
    tmp_path: Path, change: tuple[str, str], line: int, problem: str
) -> None:
    path = tmp_path / "accuracies.yaml"
    path.write_text(ENTRY)
    assert [publication.name for publication in _read(path)] == ["one"]
    path.write_text(ENTRY.replace(*change))

    with pytest.raises(DocumentError, match=problem.replace("[", r"\[")) as caught:
        list(_read(path))

    assert f"accuracies.yaml:{line}: " in str(caught.value)


def test_a_reference_without_a_right_answer_has_its_row() -> None:
    wrong = dataclasses.replace(result("smollm2-135m", "bf16", "facts"), baseline={"value": 0.0, "source": "measured"})

    assert "from zero" in summary_text([wrong], width=200, color=False)
