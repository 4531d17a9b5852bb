"""Results of lm-eval (`lm_eval ... --output_path`): accuracies of tasks, each by the definition of its version."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from pytest_llamaperf.cases import CPU
from pytest_llamaperf.catalog.tasks import evaluations
from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.importing.reading import LeftOut, Told, at, digest_of, gpu_part, model_part, number, part
from pytest_llamaperf.measurements import Source
from pytest_llamaperf.metrics import ACCURACY, Better
from pytest_llamaperf.observations import Observation

ONE_SIDED = 1.645  # standard errors of an interval whose ends are at 95 % each, as everywhere in this project


def observations(where: str, document: Mapping[str, Any], told: Told, left_out: LeftOut) -> Iterator[Observation]:
    results = document["results"]
    if not isinstance(results, dict) or not all(isinstance(each, dict) for each in results.values()):
        raise UsageError(f"{where}: 'results' is no mapping of tasks")
    run = f"lm-eval-{digest_of(document)}"
    subject = _subject(where, document, told)
    when = _when(where, document)
    for task, scores in results.items():
        for name in scores:
            metric, comma, filtered = name.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            higher = at(document, "higher_is_better", task, metric)
            value = number(where, scores, name)
            if value is None or higher is None:
                left_out[f"{metric[:40]!r} of lm-eval, of which it is not known whether more is better"] += 1
                continue
            error = number(where, scores, f"{metric}_stderr,{filtered}")
            reach = None if error is None else ONE_SIDED * error
            ours = _ours(task, metric, filtered)
            yield Observation(
                case=f"{subject}/{part(ours[0])}",
                metric=ours[1],
                unit=ACCURACY.unit if 0 <= value <= 1 else "1",
                better=(Better.HIGHER if higher else Better.LOWER).value,
                source=Source.MEASURED.value,
                value=value,
                run=run,
                harness=_harness(document, task),
                when=when,
                low=None if reach is None else value - reach,
                high=None if reach is None else value + reach,
                versions={"lm_eval": str(document.get("lm_eval_version"))},
            )


def _when(where: str, document: Mapping[str, Any]) -> str | None:
    """`date` in seconds since 1970, as everywhere in this project."""
    seconds = number(where, document, "date")
    try:
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, OSError, ValueError):
        raise UsageError(f"{where}: date is {seconds:g}, and should be seconds since 1970") from None


def _ours(task: str, metric: str, filtered: str) -> tuple[str, str]:
    """The catalog's task and `accuracy`, where this is what it compares; else lm-eval's own words for both."""
    for evaluation in evaluations().values():
        same_filter = evaluation.filter == filtered
        if (evaluation.lm_eval, evaluation.metric) == (task, metric) and same_filter:
            return evaluation.name, ACCURACY.name
    return task, metric if filtered == "none" else f"{metric} ({filtered})"


def _harness(document: Mapping[str, Any], task: str) -> str:
    """What decides whether two scores are of the same questions: lm-eval counts a task's version for this."""
    shots, limit = at(document, "n-shot", task), at(document, "config", "limit")
    parts = [f"lm-eval {task}", f"task version {at(document, 'versions', task)}"]
    parts += [] if shots is None else [f"{shots}-shot"]
    parts += [] if limit is None else [f"limit {limit}"]
    return ", ".join(parts)


def _subject(where: str, document: Mapping[str, Any], told: Told) -> str:
    arguments = _arguments(at(document, "config", "model_args"))
    name = arguments.get("pretrained") or arguments.get("model") or document.get("model_name")
    if not name:
        raise UsageError(f"{where}: does not say which model was asked (config.model_args, model_name)")
    model, published_as = model_part(str(name))
    recipe = published_as or "bf16"
    if published_as is None and arguments.get("dtype") in ("float32", "float16"):
        recipe = {"float32": "fp32", "float16": "fp16"}[arguments["dtype"]]
    tp = arguments.get("tensor_parallel_size", "1")
    engine = part(str(at(document, "config", "model") or "unknown"))
    return f"{_hardware(where, document, told)}/{engine}/{model}/{recipe}/tp{part(tp)}"


def _arguments(told: object) -> dict[str, str]:
    """`model_args`, as text or, in newer versions, as an object."""
    if isinstance(told, dict):
        return {str(name): str(value) for name, value in told.items()}
    pairs = (pair.partition("=") for pair in str(told or "").split(","))
    return {name.strip(): value.strip() for name, equals, value in pairs if equals}


def _hardware(where: str, document: Mapping[str, Any], told: Told) -> str:
    if told.gpu:
        return told.gpu
    if str(at(document, "config", "device")).startswith("cpu"):
        return CPU
    found = re.search(r"^GPU 0: (.+?)\s*$", str(document.get("pretty_env_info")), re.MULTILINE)
    if found is None:
        raise UsageError(f"{where}: does not say on which GPU; add it: --gpu h200")
    return gpu_part(found[1])
