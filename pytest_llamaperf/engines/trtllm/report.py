"""A report of trtllm-bench, read as evidence: used when everything in it is as asked, and refused as a whole otherwise.

Its schema is that of TensorRT-LLM 1.0 to 1.3.0rc (bench/dataclasses/reporting.py); a key that a version does not write
is a metric that version does not give, never a zero.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from pytest_llamaperf import metrics
from pytest_llamaperf.errors import EngineError
from pytest_llamaperf.metrics import Metric
from pytest_llamaperf.traces import Trace, summarize

# Relative: how far figures of one report may be apart that follow from one another.
ROUNDING = 0.01

# Where each metric stands, and what makes base units of it.
_FIGURES: Mapping[Metric, tuple[str, float]] = {
    metrics.OUTPUT_THROUGHPUT: ("performance.system_output_throughput_tok_s", 1.0),
    metrics.OUTPUT_THROUGHPUT_PER_GPU: ("performance.output_throughput_per_gpu_tok_s", 1.0),
    metrics.OUTPUT_SPEED_PER_USER: ("performance.output_throughput_per_user_tok_s", 1.0),
    metrics.REQUEST_LATENCY_MEDIAN: ("performance.request_latency_percentiles_ms.p50", 1e-3),
    metrics.TTFT_MEDIAN: ("streaming_metrics.ttft_percentiles.p50", 1e-3),
    metrics.TTFT_P99: ("streaming_metrics.ttft_percentiles.p99", 1e-3),
    metrics.TPOT_MEDIAN: ("streaming_metrics.tpot_percentiles.p50", 1e-3),
    metrics.TPOT_P99: ("streaming_metrics.tpot_percentiles.p99", 1e-3),
}
_MUST_BE_POSITIVE = ("request_info", "performance", "streaming_metrics")


class BadReport(EngineError):
    """Everything that is wrong with a report, a line each."""


@dataclass(frozen=True)
class Asked:
    """What a report has to be about. `lengths` are (ISL, OSL) of every request; `gpu` is None where no GPU is under test.

    `max_batch_size` and `max_num_tokens` are None where they were not ours to choose.
    """

    lengths: Sequence[tuple[int, int]]
    tp: int
    pp: int
    max_batch_size: int | None
    max_num_tokens: int | None
    quantization: str | None
    kv_cache: str | None
    gpu: str | None
    version: str | None


@dataclass(frozen=True)
class Reported:
    """What may be used of a report: metrics in base units, seconds from first to last, the version that wrote it."""

    version: str
    figures: Mapping[Metric, float]
    elapsed: float
    settings: Mapping[str, str | int | float | bool]


def read_report(path: Path, asked: Asked) -> Reported:
    """Raises BadReport, naming everything that is wrong."""
    report = _json(path)
    if not isinstance(report, dict):
        raise BadReport("the report is no mapping")
    problems = [*_problems(report, asked)]
    if problems:
        raise BadReport("\n".join(problems))
    figures = {
        metric: float(value) * scale for metric, (place, scale) in _FIGURES.items()
        if (value := _at(report, place)) is not None
    }  # fmt: skip
    if max(osl for _, osl in asked.lengths) == 1:  # there is no token after the first
        figures = {metric: value for metric, value in figures.items() if not metric.name.startswith("tpot")}
    kept = ("scheduling_policy", "kv_cache_percentage", "max_batch_size", "max_num_tokens")
    world = report["world_info"]
    settings = {name: world[name] for name in kept if isinstance(world.get(name), (str, int, float))}
    return Reported(
        str(report["engine"]["version"]), figures, report["performance"]["total_latency_ms"] / 1e3, settings
    )


def read_requests(path: Path, asked: Asked, reported: Reported) -> tuple[Trace, ...]:
    """Clock readings of all requests, which agree with the report. Raises BadReport."""
    records = _json(path)
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise BadReport("the requests are no list of mappings")
    try:
        traces = tuple(
            Trace(
                record["start_timestamp"] / 1e9,
                record["first_token_timestamp"] / 1e9,
                record["end_timestamp"] / 1e9,
                record["num_input_tokens"],
                record["num_total_output_tokens"],
            )
            for record in records
        )
    except (KeyError, TypeError, ValueError) as problem:
        raise BadReport(f"the requests cannot be used: {problem}") from None
    problems = [*_wrong_requests(traces, asked, reported)]
    if problems:
        raise BadReport("\n".join(problems))
    return traces


def _problems(report: Mapping[str, Any], asked: Asked) -> Iterator[str]:
    yield from _wrong_numbers(report)
    count = len(asked.lengths)
    tokens = sum(osl for _, osl in asked.lengths)
    wanted: dict[str, object] = {
        "request_info.num_requests": count,
        "dataset.num_requests": count,
        "world_info.tp_size": asked.tp,
        "world_info.pp_size": asked.pp,
        "engine.quantization": asked.quantization,
        "engine.kv_cache_dtype": asked.kv_cache,
    }
    chosen = {"world_info.max_batch_size": asked.max_batch_size, "world_info.max_num_tokens": asked.max_num_tokens}
    wanted |= {place: value for place, value in chosen.items() if value is not None}
    if asked.version is not None:
        wanted["engine.version"] = asked.version
    for place, value in wanted.items():
        found = _at(report, place)
        if _as_none(found) != value:
            yield f"{place} is {found!r}, asked for {value!r}"
    if not isinstance(_at(report, "engine.version"), str):
        yield "engine.version is missing"
    # Before 1.2 there is no such block, and the GPU is known by asking the driver alone.
    if asked.gpu is not None and "machine" in report:
        name = _at(report, "machine.name")
        if asked.gpu.upper() not in str(name).upper():
            yield f"machine.name is {name!r}, asked for {asked.gpu.upper()}"
    length = _number(report, "request_info.avg_output_length")
    if length is None or not math.isclose(length, tokens / count, rel_tol=1e-6):
        yield f"request_info.avg_output_length is {length}, asked for {tokens / count:g}: answers were cut short"
    elapsed, speed = (
        _number(report, f"performance.{name}") for name in ("total_latency_ms", "system_output_throughput_tok_s")
    )
    if elapsed is None or speed is None:
        yield "performance.total_latency_ms and performance.system_output_throughput_tok_s are not both there"
    elif elapsed > 0 and not math.isclose(speed, tokens / elapsed * 1e3, rel_tol=ROUNDING):
        yield (
            f"performance.system_output_throughput_tok_s is {speed:g}, and {tokens:,} tokens in {elapsed:g} ms are "
            f"{tokens / elapsed * 1e3:g}"
        )
    if "streaming_metrics" not in report:
        yield "streaming_metrics is missing, though the run was streamed"


def _wrong_numbers(report: Mapping[str, Any]) -> Iterator[str]:
    """Of what metrics are made. A mean TPOT of requests with one token is 0, and nothing else may be."""
    for block in _MUST_BE_POSITIVE:
        for place, value in _numbers(report.get(block), block):
            if value <= 0 and not (value == 0 and "tpot" in place) and "gen_tps" not in place:
                yield f"{place} is {value:g}"


def _numbers(value: object, place: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _numbers(inner, f"{place}.{name}")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield place, float(value)


def _wrong_requests(traces: Sequence[Trace], asked: Asked, reported: Reported) -> Iterator[str]:
    found = Counter((trace.input_tokens, trace.output_tokens) for trace in traces)
    if found != Counter(asked.lengths):
        yield f"the requests are {_told(found)}, asked for {_told(Counter(asked.lengths))}"
        return
    ours = summarize(traces, asked.tp * asked.pp)
    for metric in (metrics.OUTPUT_THROUGHPUT, metrics.TTFT_MEDIAN):
        theirs = reported.figures.get(metric)
        if theirs is not None and not math.isclose(ours[metric], theirs, rel_tol=ROUNDING):
            yield f"{metric} of the requests is {ours[metric]:g} {metric.unit}, of the report {theirs:g} {metric.unit}"


def _told(lengths: Counter[tuple[int, int]]) -> str:
    first = ", ".join(f"{count:,} of ISL {isl:,} and OSL {osl:,}" for (isl, osl), count in lengths.most_common(3))
    return first + (" ..." if len(lengths) > 3 else "")


def _at(report: Mapping[str, Any], place: str) -> Any:
    value: Any = report
    for name in place.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _number(report: Mapping[str, Any], place: str) -> float | None:
    value = _at(report, place)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _as_none(value: object) -> object:
    """trtllm-bench writes some absent values as the word."""
    return None if value == "None" else value


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refused)
    except FileNotFoundError:
        raise BadReport(f"{path.name} was not written") from None
    except _NotFinite as problem:
        raise BadReport(f"{path.name} holds {problem}") from None
    except (OSError, ValueError, RecursionError) as problem:
        raise BadReport(f"{path.name} is no JSON: {problem}") from None


class _NotFinite(Exception):
    """NaN or Infinity, which Python writes into JSON without being asked."""


def _refused(name: str) -> NoReturn:
    raise _NotFinite(name)
