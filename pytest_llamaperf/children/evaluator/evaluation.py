"""A task from its name to one score a document."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from importlib.metadata import version
from numbers import Real
from pathlib import Path
from typing import Any

from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from .correspondent import Correspondent

Report = Callable[..., None]

SHOWN = 200  # characters of a document, for whoever reads which got worse


class UnknownTask(Exception):
    """lm-eval has no task of this name."""


class NoData(Exception):
    """The documents of a task are not on this machine, and may not be fetched."""


def evaluated(
    ask: Callable[[dict[str, Any]], Any],
    report: Report,
    *,
    task: str,
    metric: str,
    filter: str,
    shots: int | None,
    documents: int | None,
    seed: int,
    include: str | None,
    checkpoint: str,
    longest: int,
) -> dict[str, Any]:
    """Scores of a task's documents by `metric` after `filter`, of all or of `documents` drawn with `seed`; and, from the same
    answers, the mean of every metric.

    Raises UnknownTask, NoData, TooLong, and ValueError for a metric that the task has not.
    """
    # Its own tasks are thousands of files, which it reads for seconds.
    manager = TaskManager(include_path=include, include_defaults=include is None)
    if task not in manager.all_tasks:
        raise UnknownTask(f"lm-eval {version('lm_eval')} has no task {task!r}")
    report(f"reading the documents of {task}")
    random.seed(seed)  # GPQA shuffles its choices when it is read
    loaded = _loaded(manager, task)
    samples = (
        None
        if documents is None
        else {name: _drawn(each, documents, len(loaded), seed) for name, each in loaded.items()}
    )
    folder = Path(checkpoint)
    model = Correspondent(ask, folder / "tokenizer.json", longest=longest, end=_end_of_text(folder))
    found = simple_evaluate(
        model=model,
        tasks=[task],
        num_fewshot=shots,
        samples=samples,
        bootstrap_iters=0,
        task_manager=manager,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    judged = [(name, row) for name, listed in found["samples"].items() for row in listed if row["filter"] == filter]
    if not judged:
        filters = sorted({row["filter"] for listed in found["samples"].values() for row in listed})
        raise ValueError(
            f"{task} has no results after the filter {filter!r}; there are: {', '.join(filters) or 'none'}"
        )
    return {
        "rows": [_row(name, row, metric) for name, row in judged],
        "measures": _measures([row for _, row in judged], list(model.lengths.values())),
        "protocol": {
            "lm_eval": version("lm_eval"),
            "versions": {name: found["versions"].get(name) for name in sorted(found["samples"])},
            "shots": {name: found["n-shot"].get(name) for name in sorted(found["samples"])},
        },
    }


def _loaded(manager: TaskManager, task: str) -> dict[str, Any]:
    try:
        return dict(manager.load([task])["tasks"])
    except Exception as problem:
        if type(problem).__name__ in (
            "DatasetNotFoundError",
            "OfflineModeIsEnabled",
            "ConnectionError",
            "LocalEntryNotFoundError",
        ):
            raise NoData(f"the documents of {task} are not here: {problem}") from problem
        raise


def _drawn(task: Any, documents: int, parts: int, seed: int) -> list[int]:
    """Numbers of documents, drawn without regard to their order: the first ones of a file are often alike."""
    total = len(task.eval_docs)
    share = min(-(-documents // parts), total)
    return sorted(random.Random(f"{seed} {task.config.task}").sample(range(total), share))


def _measures(rows: Sequence[dict[str, Any]], lengths: Sequence[int]) -> dict[str, float]:
    """Means over the documents, of what is one number for each; and of `answer_tokens`, where all have one answer."""
    common = [name for name in rows[0]["metrics"] if all(isinstance(row.get(name), Real) for row in rows)]
    values: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in common}
    if len(lengths) == len(rows):
        values["answer_tokens"] = list(lengths)
    return {name: math.fsum(each) / len(rows) for name, each in values.items()}


def _row(task: str, row: dict[str, Any], metric: str) -> dict[str, Any]:
    if metric not in row:
        raise ValueError(f"{task} has no metric {metric!r}; it has: {', '.join(row['metrics'])}")
    document = row["doc"]
    target, answer = _told(row)
    return {
        "id": row["doc_hash"],
        "prompt": row["prompt_hash"],
        "score": float(row[metric]),
        "cluster": str(document.get("cluster") or row["doc_hash"]),
        "text": str(row["arguments"][0][0])[-SHOWN:],
        "target": target[:SHOWN],
        "answer": answer[:SHOWN],
    }


def _told(row: dict[str, Any]) -> tuple[str, str]:
    """What was wanted, and what came: of choices their words, of which the likeliest is the answer."""
    answers, choices = row["filtered_resps"], [arguments[1] for arguments in row["arguments"]]
    target = str(row["target"])
    if len(choices) < 2 or len(answers) != len(choices):
        return target, str(answers[0]) if answers else ""
    likeliest = max(range(len(answers)), key=lambda number: answers[number][0])
    wanted = choices[int(target)] if target.isdecimal() and int(target) < len(choices) else target
    return wanted.strip(), choices[likeliest].strip()


def _end_of_text(folder: Path) -> int:
    """The token that ends a text, by generation_config.json or config.json; of several the first."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        said = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
        if isinstance(said, list) and said:
            said = said[0]
        if isinstance(said, int):
            return said
    raise ValueError(f"{folder} does not say which token ends a text (eos_token_id in config.json)")
