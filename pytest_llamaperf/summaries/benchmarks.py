"""A run as JSON for two services that chart benchmarks over commits: github-action-benchmark and Bencher.

github-action-benchmark (its tools customBiggerIsBetter and customSmallerIsBetter, a file for each direction) reads a list
of {name, unit, value, range, extra}: https://github.com/benchmark-action/github-action-benchmark.
Bencher's adapter `json` reads its Metric Format, {benchmark: {measure: {value, lower_value, upper_value}}}:
https://bencher.dev/docs/reference/bencher-metric-format.
Values are in base units. A prediction, and what was measured on GPUs that nobody watched, has a name of its own, so that it never
becomes one line with measurements.
"""

from __future__ import annotations

from typing import Any

from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.measurements import Source
from pytest_llamaperf.metrics import Better
from pytest_llamaperf.observations import Observation, observations_of
from pytest_llamaperf.runs import Run
from pytest_llamaperf.wording import counted

# Of Bencher, in characters.
LONGEST_BENCHMARK, LONGEST_MEASURE = 1024, 64


def github_action_benchmark(run: Run, better: Better) -> list[dict[str, Any]]:
    """Raises UsageError where there is no such value, because the action fails on an empty list."""
    found = [_entry(each) for each in observations_of(run) if each.better == better]
    if not found:
        raise UsageError(
            f"no value of this run is one of which {better} is better, and the action refuses an empty file"
        )
    return found


def bencher(run: Run) -> dict[str, dict[str, dict[str, float]]]:
    """Raises UsageError where there is no value, or a name is longer than Bencher takes."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for each in observations_of(run):
        name = _name(each.case, each)
        if len(name) > LONGEST_BENCHMARK or len(each.metric) > LONGEST_MEASURE:
            raise UsageError(
                f"{name}, {each.metric}: Bencher takes names of {LONGEST_BENCHMARK} characters, and of {LONGEST_MEASURE} for "
                "a measure"
            )
        bounds = {} if each.low is None or each.high is None else {"lower_value": each.low, "upper_value": each.high}
        found.setdefault(name, {})[each.metric] = {"value": each.value, **bounds}
    if not found:
        raise UsageError("this run has no value")
    return found


def _entry(each: Observation) -> dict[str, Any]:
    entry = {"name": _name(f"{each.case} {each.metric}", each), "unit": each.unit, "value": each.value}
    if each.low is not None and each.high is not None:
        entry["range"] = f"{each.low:.6g} to {each.high:.6g}"
    restarts = f" in {counted(len(each.values), 'restart')}" if each.source == Source.MEASURED else ""
    version = f"\nTensorRT-LLM {each.version}" if each.version else ""
    return {**entry, "extra": f"{each.source}{restarts}\n{each.outcome}{version}"}


def _name(name: str, each: Observation) -> str:
    if each.blind:
        return f"{name} (measured blind)"
    return name if each.source == Source.MEASURED else f"{name} ({each.source})"
