"""The offline tasks: the packaged files are what the script writes, their clusters are many, and lm-eval reads them.

lm-eval runs in a process of its own, once for the module: importing it takes seconds, and it must not stay.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[1]
FOLDER = REPOSITORY / "pytest_llamaperf" / "accuracy" / "offline"
TASKS = ("agreement", "facts", "copying", "short_answers")
OF_CHOICES = {"agreement": 2, "facts": 4, "copying": 4}

LOADING = """
import json, sys
from lm_eval.tasks import TaskManager

loaded = {}
manager = TaskManager(include_path=sys.argv[1], include_defaults=False)
for name, task in manager.load("llamaperf_offline")["tasks"].items():
    task.build_all_requests()
    loaded[name] = {
        "ids": [document["id"] for document in task.eval_docs],
        "kinds": sorted({request.request_type for request in task.instances}),
        "requests": [list(request.args) for request in task.instances],
        "version": task.VERSION,
    }
print(json.dumps(loaded))
"""


def documents(task: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_packaged_files_are_what_the_script_writes(tmp_path: Path) -> None:
    script = REPOSITORY / "benchmarks" / "accuracy" / "make_tasks.py"
    subprocess.run([sys.executable, "-I", str(script), "--folder", str(tmp_path)], check=True)

    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert written == {path.name: path.read_bytes() for path in FOLDER.glob("*.jsonl")}
    assert {f"{task}.jsonl" for task in TASKS} == set(written)


def test_there_are_enough_documents() -> None:
    assert sum(len(documents(task)) for task in TASKS) >= 1500


@pytest.mark.parametrize("task", TASKS)
def test_no_document_comes_twice(task: str) -> None:
    asked = documents(task)

    assert len({document["id"] for document in asked}) == len(asked)
    assert len({document.get("prompt") or question(document) for document in asked}) == len(asked)


def question(document: dict[str, Any]) -> tuple[str, ...]:
    """What is asked, whatever the order of the choices."""
    return document["context"], *sorted(document["choices"])


@pytest.mark.parametrize("task", TASKS)
def test_clusters_are_many_and_none_is_large(task: str) -> None:
    sizes = Counter(document["cluster"] for document in documents(task))

    assert len(sizes) >= 40
    assert max(sizes.values()) <= 0.05 * sizes.total()


@pytest.mark.parametrize(("task", "number"), OF_CHOICES.items())
def test_the_right_choice_stands_in_each_place_equally_often(task: str, number: int) -> None:
    asked = documents(task)
    places = Counter(document["label"] for document in asked)

    assert all(len(set(document["choices"])) == number for document in asked)
    assert set(places) == set(range(number))
    assert max(places.values()) - min(places.values()) <= 1


def test_both_numbers_of_a_verb_are_right_equally_often() -> None:
    """A model that always says the same form is at chance, for each verb."""
    right = Counter(
        (document["cluster"], document["choices"][document["label"]]) for document in documents("agreement")
    )

    for cluster, _ in right:
        singular, plural = cluster.split("-")
        assert right[cluster, singular] == right[cluster, plural]


def test_examples_do_not_give_the_answer_away() -> None:
    for document in documents("short_answers"):
        *examples, asked = document["prompt"].splitlines()[1:]
        assert len(examples) == 3
        assert asked.endswith(":")
        assert document["answer"] not in [example.split(": ")[1] for example in examples]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What lm-eval makes of the folder, started elsewhere, without network, and writing nothing."""
    if find_spec("lm_eval") is None:
        pytest.skip("lm-eval is not installed: pip install pytest-llamaperf[accuracy]")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(elsewhere / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", LOADING, str(FOLDER)],
        cwd=elsewhere,
        env={**os.environ, **offline},
        check=True,
        capture_output=True,
        text=True,
    )
    assert list(elsewhere.rglob("*")) == []
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_tag_names_all_tasks(loaded: dict[str, Any]) -> None:
    assert set(loaded) == {f"llamaperf_{task}" for task in TASKS}
    assert {task["version"] for task in loaded.values()} == {1}


@pytest.mark.parametrize("task", TASKS)
def test_lm_eval_finds_every_document_in_order(task: str, loaded: dict[str, Any]) -> None:
    assert loaded[f"llamaperf_{task}"]["ids"] == [document["id"] for document in documents(task)]


@pytest.mark.parametrize("task", OF_CHOICES)
def test_each_choice_is_a_request(task: str, loaded: dict[str, Any]) -> None:
    found = loaded[f"llamaperf_{task}"]

    assert found["kinds"] == ["loglikelihood"]
    assert found["requests"] == [
        [document["context"], f" {choice}"] for document in documents(task) for choice in document["choices"]
    ]


def test_each_short_answer_is_one_line_of_a_few_tokens(loaded: dict[str, Any]) -> None:
    found = loaded["llamaperf_short_answers"]

    assert found["kinds"] == ["generate_until"]
    assert found["requests"] == [
        [document["prompt"], {"until": ["\n"], "max_gen_toks": 8, "do_sample": False}]
        for document in documents("short_answers")
    ]
