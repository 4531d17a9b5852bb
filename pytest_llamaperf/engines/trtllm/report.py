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
FIGURES: Mapping[Metric, tuple[str, float]] = {
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
        metric: value * scale for metric, (place, scale) in FIGURES.items()
        if (value := _number(report, place)) is not None
    }  # fmt: skip
    if _has_single_tokens(asked):  # which it counts as a time of 0 for a token after the first
        figures = {metric: value for metric, value in figures.items() if not metric.name.startswith("tpot")}
    kept = ("scheduling_policy", "kv_cache_percentage", "max_batch_size", "max_num_tokens")
    world = report["world_info"]
    settings = {name: world[name] for name in kept if isinstance(world.get(name), (str, int, float))}
    elapsed = float(report["performance"]["total_latency_ms"]) / 1e3
    return Reported(str(report["engine"]["version"]), figures, elapsed, settings)


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
    except (ArithmeticError, KeyError, TypeError, ValueError) as problem:
        raise BadReport(f"the requests cannot be used: {problem}") from None
    problems = [*_wrong_requests(traces, asked, reported)]
    if problems:
        raise BadReport("\n".join(problems))
    return traces


def _problems(report: Mapping[str, Any], asked: Asked) -> Iterator[str]:
    yield from _wrong_numbers(report, asked)
    count = len(asked.lengths)
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
    engine = report.get("engine")
    unsaid = [name for name in ("quantization", "kv_cache_dtype") if not isinstance(engine, dict) or name not in engine]
    if unsaid:  # not the same as null, which is BF16
        yield f"engine.{' and engine.'.join(unsaid)} is missing"
    if not isinstance(_at(report, "engine.version"), str):
        yield "engine.version is missing"
    # Before 1.2 there is no such block, and the GPU is known by asking the driver alone.
    if asked.gpu is not None and "machine" in report:
        name = _at(report, "machine.name")
        if asked.gpu.upper() not in str(name).upper():
            yield f"machine.name is {name!r}, asked for {asked.gpu.upper()}"
    yield from _wrong_lengths(report, asked)
    yield from _wrong_speed(report, asked)
    if not isinstance(report.get("streaming_metrics"), dict):
        yield "streaming_metrics is missing, though the run was streamed"


def _wrong_lengths(report: Mapping[str, Any], asked: Asked) -> Iterator[str]:
    count = len(asked.lengths)
    isl, osl = (sum(lengths) / count for lengths in zip(*asked.lengths, strict=True))
    found = _number(report, "request_info.avg_output_length")
    if found is None or not math.isclose(found, osl, rel_tol=1e-6):
        yield f"request_info.avg_output_length is {found}, asked for {osl:g}: answers were cut short"
    found = _number(report, "request_info.avg_input_length")
    if found is not None and not math.isclose(found, isl, rel_tol=1e-6):
        yield f"request_info.avg_input_length is {found:g}, asked for {isl:g}: prompts were changed"


def _wrong_speed(report: Mapping[str, Any], asked: Asked) -> Iterator[str]:
    """Throughput follows from the tokens, the time and the GPUs."""
    tokens, gpus = sum(osl for _, osl in asked.lengths), asked.tp * asked.pp
    elapsed, speed, each = (
        _number(report, f"performance.{name}")
        for name in ("total_latency_ms", "system_output_throughput_tok_s", "output_throughput_per_gpu_tok_s")
    )
    if elapsed is None or speed is None:
        yield "performance.total_latency_ms and performance.system_output_throughput_tok_s are not both there"
        return
    if elapsed > 0 and not math.isclose(speed, tokens / elapsed * 1e3, rel_tol=ROUNDING):
        yield (
            f"performance.system_output_throughput_tok_s is {speed:g}, and {tokens:,} tokens in {elapsed:g} ms are "
            f"{tokens / elapsed * 1e3:g}"
        )
    elif each is not None and not math.isclose(each, speed / gpus, rel_tol=ROUNDING):
        yield (
            f"performance.output_throughput_per_gpu_tok_s is {each:g}, and {speed:g} tok/s on {gpus} are {speed / gpus:g}"
        )


def _wrong_numbers(report: Mapping[str, Any], asked: Asked) -> Iterator[str]:
    """Of what metrics are made. What comes after the first token is 0 for requests with one token, nothing else may be."""
    for block in _MUST_BE_POSITIVE:
        for place, value in _numbers(report.get(block), block):
            after_the_first = any(name in place for name in ("tpot", "gen_tps", "token_output_speed"))
            if not math.isfinite(value) or value < 0 or (
                value == 0 and not (after_the_first and _has_single_tokens(asked))
            ):  # fmt: skip
                yield f"{place} is {value:g}"
    for place, _ in FIGURES.values():
        if _as_none(found := _at(report, place)) is not None and _number(report, place) is None:
            yield f"{place} is {found!r}, which is no number"


def _has_single_tokens(asked: Asked) -> bool:
    return any(osl == 1 for _, osl in asked.lengths)


def _numbers(value: object, place: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _numbers(inner, f"{place}.{name}")
    elif (number := _as_number(value)) is not None:
        yield place, number


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
    return _as_number(_at(report, place))


def _as_number(value: object) -> float | None:
    """None for what is no number, infinity for what is too large for one."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


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
